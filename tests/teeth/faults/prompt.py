"""Faults of the passphrase prompt: who shows it, how often, and dedup."""

from .base import Fault, zfs_tests

SERVICE = "dom0/qubes-rpc/qubes.AskPassword"


def unit_tests(file: str, *names: str) -> tuple[str, ...]:
    """Return the node ids of tests in ``tests/unit/test_<file>.py``."""
    return tuple(f"tests/unit/test_{file}.py::test_{name}" for name in names)


BACKOFF = zfs_tests(
    "keys_of_qubes", "no_qube_can_have_the_prompt_shown_again_and_again"
)
REMOVAL = (
    zfs_tests("keys_of_qubes", "the_qube_that_asks_is_not_removed")
    + unit_tests("ask_domain", "it_cannot_be_removed_while_the_pool_is_there")
    + unit_tests("ask_domain", "qubes_xml_says_which_it_is")
)
DEDUP = zfs_tests("features", "dedup_is_switched_on_by_the_pool_alone")

FAULTS = (
    Fault(
        "a qube's guivm decides where the passphrase is typed",
        "driver/prompts.py",
        """\
        if getattr(app.domains[qube], "guivm", None) == dom0:
            return dom0
""",
        """\
        if found := getattr(app.domains[qube], "guivm", None):
            return found
""",
        unit_tests("ask", "no_qube_says_where_the_passphrase_is_typed"),
    ),
    Fault(
        "default_guivm is asked before ask_password_domain",
        "driver/prompts.py",
        "    if chosen is not None:\n",
        "    if chosen is not None and app.default_guivm is None:\n",
        unit_tests(
            "ask",
            "no_qube_says_where_the_passphrase_is_typed",
            "a_later_qube_of_the_same_name_is_not_asked",
        ),
    ),
    Fault(
        "a later qube of the same name is asked",
        "driver/prompts.py",
        "qube.name == self.name and str(qube.uuid) == self.uuid",
        "qube.name == self.name",
        unit_tests("ask", "a_later_qube_of_the_same_name_is_not_asked")
        + REMOVAL,
    ),
    Fault(
        "the qube that asks is not recorded when the pool is added",
        "driver/encrypted.py",
        "        self.note_ask_domain(None)\n",
        "",
        REMOVAL,
    ),
    Fault(
        "the qube that asks can be removed",
        "driver/extension.py",
        '@_on("domain-pre-delete", may_refuse=True, system=True)',
        '@_on("domain-pre-delete", system=True)',
        REMOVAL,
    ),
    Fault(
        "a prompt that was not answered delays nothing",
        "driver/backoff.py",
        "self._not_before = now() + self._wait",
        "self._not_before = now()",
        unit_tests("backoff", "a_prompt_that_was_cancelled_delays_the_next")
        + BACKOFF,
    ),
    Fault(
        "the delay does not grow",
        "driver/backoff.py",
        "min(2 * self._wait or FIRST, LONGEST)",
        "FIRST",
        unit_tests("backoff", "a_prompt_that_was_cancelled_delays_the_next"),
    ),
    Fault(
        "a prompt that qubesd closed delays nothing",
        "driver/keytimer.py",
        "        except keys.NobodyToAsk:\n",
        "        except (keys.NobodyToAsk, asyncio.CancelledError):\n",
        unit_tests("backoff", "a_prompt_that_was_closed_delays_the_next"),
    ),
    Fault(
        "wrong passphrases delay nothing",
        "driver/keytimer.py",
        "        except BaseException:\n            if shown:\n",
        "        except keys.NotAsked:\n            if shown:\n",
        unit_tests("backoff", "three_wrong_passphrases_delay_too"),
    ),
    Fault(
        "the prompt does not name the qube",
        "driver/prompts.py",
        '            self._request += f" {qube}"\n',
        "            pass\n",
        unit_tests("ask", "the_prompt_is_given_the_qube_that_needs_the_pool"),
    ),
    Fault(
        "markup in a qube's name reaches the prompt",
        SERVICE,
        "([A-Za-z][A-Za-z0-9_.-]{0,30})",
        r"([^ \n]{1,31})",
        unit_tests("ask_service", "a_bad_request_asks_nobody"),
    ),
    Fault(
        "the prompt appears on the oldest process's display",
        SERVICE,
        "    active = active_session()\n",
        "    active = None\n",
        unit_tests("ask_service", "root_asks_in_the_active_session_of_seat0"),
    ),
    Fault(
        "a session that is not on the screen is asked",
        SERVICE,
        "    if active.uid is None:\n        return 0, {}\n",
        "    if active.uid is None:\n        return oldest(PEOPLE) or (0, {})\n",
        unit_tests(
            "ask_service", "no_session_that_is_not_on_the_screen_is_asked"
        ),
    ),
    Fault(
        "a feature switches dedup on",
        "driver/features.py",
        '    "copies": _one_of("1", "2", "3"),\n',
        '    "copies": _one_of("1", "2", "3"),\n'
        '    "dedup": options.parse_dedup,\n',
        unit_tests("tuning", "dedup_is_an_option_of_the_pool") + DEDUP,
    ),
    Fault(
        "dedup that a feature switched on stays on",
        "driver/features.py",
        "frozenset((*PROPERTIES, DEDUP))",
        "frozenset(PROPERTIES)",
        DEDUP,
    ),
)
