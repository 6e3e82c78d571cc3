# SPDX-License-Identifier: BSD-2-Clause
"""The protocol between keys.py, the keyholder and the prompts, and its bounds.

The keyholder asks for a passphrase by writing a Purpose.  qubesd passes it on
as the argument of the service qubes.AskPassword; the tool shows a text for it.
The service is a separate program, which may run in another qube: a unit test
compares its words with these.  qubesd imports this module, and never the
keyholder's program.
"""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

#: iterations of PBKDF2: at least as many as zfs(8) accepts, at most as many as
#: take a minute or two
ITERATIONS = range(100_000, 100_000_001)
#: bytes of a passphrase that zfs(8) accepts
SHORTEST, LONGEST = 8, 512


class Purpose(enum.StrEnum):
    """The purpose of a prompt."""

    UNLOCK = "unlock"
    UNLOCK_AGAIN = "unlock-again"
    NEW = "new"
    NEW_AGAIN = "new-again"
    NEW_DIFFERS = "new-differs"
    NEW_SHORT = "new-short"

    @property
    def is_new(self) -> bool:
        """Whether the prompt is for a new passphrase."""
        return self.name.startswith("NEW")


class Progress(enum.StrEnum):
    """A word of the keyholder that asks for nothing."""

    #: it has read an answer
    ANSWERED = "answered"
    #: it derives a key; the iterations follow
    DERIVING = "deriving"
    #: the request was carried out
    DONE = "done"


class End(enum.StrEnum):
    """The keyholder's last word if it failed.

    A detail follows some of them.
    """

    #: an errno, and the call of ZFS
    FAILED = "failed"
    #: the last purpose: three answers were wrong
    WRONG = "wrong"
    #: the answer is not one line of text
    BAD_ANSWER = "bad-answer"
    #: the standard input of a tool ended
    NO_ANSWER = "no-answer"
    #: the iterations on the disk, which zfs(8) never sets
    BAD_PARAMETERS = "bad-parameters"
    #: the protection that the kernel refused
    UNPROTECTED = "unprotected"


class Action(enum.StrEnum):
    """An action of the keyholder."""

    #: load the key; if it is loaded, check the passphrase
    LOAD = "load"
    #: create the encryption root, which must not exist
    CREATE = "create"
    #: change the passphrase, after the present one was entered
    CHANGE = "change"


@dataclass(frozen=True)
class Request:
    """A request to the keyholder: its command line.

    :ivar root: the encryption root
    :ivar typed: whether the keyholder's standard input is that of a tool
    :ivar iterations: of PBKDF2 for a new key
    :ivar properties: of a root that is created
    """

    action: Action
    root: str
    typed: bool = False
    iterations: int = ITERATIONS.start
    properties: Mapping[str, str | int | bool | None] = field(
        default_factory=dict
    )

    @property
    def arguments(self) -> tuple[str, str, str]:
        """The command line that parse() reads."""
        options = asdict(self)
        del options["action"], options["root"]
        return self.action, self.root, json.dumps(options)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Request":
        """Parse the command line.

        :raises ValueError: if it is not the command line of a request
        :raises TypeError: if an option is unknown
        """
        action, root, options = arguments
        return cls(Action(action), root, **json.loads(options))
