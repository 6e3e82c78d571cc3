"""Faults that let a passphrase, a key or a process' identity out."""

from .base import Fault, zfs_tests

NOWHERE = zfs_tests("no_leaks", "passphrase_and_key_are_nowhere")
WIPED = zfs_tests("no_leaks", "keyholder_wipes_passphrase_and_key")
TERMINAL = zfs_tests("terminal", "tool_never_has_the_passphrase")
KEYHOLDER = "tests/unit/test_keyholder.py::test_"
SERVICE = "tests/unit/test_ask_service.py::test_"

ANSWER = '        end = buffer.index(b"\\n")\n'
LOAD = "        lzc.load_key(root, key)\n    except Exists:\n"
CHANGE = """            await keys.change(
                pool.dataset, arguments.pbkdf2iters, prompt, typed=True
            )
"""
READS = """            import os
            seen = []
            async def reads(purpose, answers):
                await prompt(purpose, answers)
                seen.append(os.read(0, 1000))
                os.write(answers, seen[-1])
            await keys.change(pool.dataset, arguments.pbkdf2iters, reads)
"""
BETWEEN = """import builtins
                builtins.seen = getattr(builtins, "seen", [])
                own, theirs = os.pipe()
                await prompt(Purpose(word), theirs)
                builtins.seen.append(os.read(own, 1024))
                os.write(answers, builtins.seen[-1])
"""

FAULTS = (
    Fault(
        "the passphrase is written to the journal",
        "zfs/answers.py",
        ANSWER,
        ANSWER + "        os.write(2, buffer)\n",
        NOWHERE,
    ),
    Fault(
        "the passphrase is an argument of a program that ends at once",
        "zfs/answers.py",
        ANSWER,
        ANSWER
        + "        os.spawnv(os.P_WAIT, '/bin/true', ['a', bytes(buffer[:end])])\n",
        NOWHERE,
    ),
    Fault(
        "the passphrase is in the environment of a program",
        "zfs/answers.py",
        ANSWER,
        ANSWER
        + "        os.spawnve(os.P_WAIT, '/bin/true', ['a'],"
        + " {'P': bytes(buffer[:end])})\n",
        NOWHERE,
    ),
    Fault(
        "the key is left in a file of /run",
        "zfs/keyholder.py",
        LOAD,
        '        open("/run/wrapping-key", "wb").write(key)\n' + LOAD,
        NOWHERE,
    ),
    Fault(
        "qubesd reads the answer and hands it on",
        "zfs/keys.py",
        "await prompt(Purpose(word), answers)\n",
        BETWEEN,
        NOWHERE,
    ),
    Fault(
        "the keyholder stays when it is done",
        "zfs/keyholder.py",
        "    say(Progress.DONE)\n",
        "    say(Progress.DONE)\n"
        '    __import__("os").fork() or __import__("time").sleep(20)\n',
        NOWHERE,
    ),
    Fault(
        "the keyholder may be dumped",
        "zfs/secrecy.py",
        "libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)",
        "libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)",
        zfs_tests("no_leaks", "nobody_can_have_keyholder_dumped"),
    ),
    Fault(
        "the keyholder may be swapped out",
        "zfs/secrecy.py",
        "libc.mlockall(_MCL_CURRENT_AND_FUTURE)",
        "None",
        zfs_tests("no_leaks", "keyholder_leaves_no_core_and_no_swap"),
    ),
    Fault(
        "a keyholder that may be swapped out asks all the same",
        "zfs/secrecy.py",
        'raise Unprotected(f"mlockall: {os.strerror(ctypes.get_errno())}")',
        "pass",
        (KEYHOLDER + "memory_that_cannot_be_locked_is_an_error",),
    ),
    Fault(
        "copies of the key are left in the keyholder's memory",
        "zfs/keyholder.py",
        "            wipe_copies(key)\n",
        "            pass\n",
        WIPED,
    ),
    Fault(
        "the passphrase is left in the keyholder's memory",
        "zfs/keyholder.py",
        "            wipe(passphrase)\n\n\ndef _load",
        "            sys.kept = passphrase\n\n\ndef _load",
        WIPED,
    ),
    Fault(
        "the first of two answers is left in memory if there is no second",
        "zfs/keyholder.py",
        "        except BaseException:\n            wipe(first)\n",
        "        except BaseException:\n",
        (KEYHOLDER + "first_of_two_answers_is_wiped_if_there_is_no_second",),
    ),
    Fault(
        "the keyholder is killed before it could wipe its memory",
        "zfs/keys.py",
        "            process.terminate()\n",
        "            process.kill()\n",
        (KEYHOLDER + "keyholder_may_wipe_before_it_is_killed",),
    ),
    Fault(
        "qvm-zfs reads the passphrase",
        "tools/passwd.py",
        CHANGE,
        READS,
        TERMINAL,
    ),
    Fault(
        "what is typed is shown",
        "zfs/answers.py",
        "quiet[3] & ~termios.ECHO | termios.ECHONL",
        "quiet[3]",
        TERMINAL,
    ),
    Fault(
        "a terminal shows nothing after the keyholder was killed",
        "tools/common.py",
        "termios.tcsetattr(0, termios.TCSAFLUSH, before)",
        "pass",
        zfs_tests("terminal", "terminal_is_as_before_whatever_ends_it"),
    ),
    Fault(
        "the service's answer may be swapped out",
        "dom0/qubes-rpc/qubes.AskPassword",
        "        lock(self.said)\n",
        "",
        (SERVICE + "what_the_kernel_refuses_to_protect_is_not_asked_for",),
    ),
    Fault(
        "the service may be dumped",
        "dom0/qubes-rpc/qubes.AskPassword",
        "if LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):",
        "if False:",
        (SERVICE + "nothing_of_it_is_dumped",),
    ),
    Fault(
        "the disk tells which process made a volume",
        "store/holder.py",
        'return _marked(_identity(os.getpid()) or "unknown")',
        'return _identity(os.getpid()) or "unknown"',
        zfs_tests("no_leaks", "what_a_locked_disk_shows"),
    ),
    Fault(
        "names that should be opaque are the qubes'",
        "driver/encrypted.py",
        'config.setdefault("vid", f"{secrets.token_hex(8)}/v")',
        "pass",
        zfs_tests("no_leaks", "what_a_locked_disk_shows"),
    ),
)
