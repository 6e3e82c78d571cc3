# SPDX-License-Identifier: BSD-2-Clause
"""The protocol between keys.py, the keyholder and the prompts.

The keyholder asks for a passphrase by writing a Purpose.  qubesd passes the
Purpose on as the argument of the service qubes.AskPassword; a tool shows a text
for it.  The service is a separate program, which may run in another qube, so a
unit test compares its words with these.  qubesd imports this module, but never
keyholder.py.
"""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

#: iterations of PBKDF2: from the least that zfs(8) accepts to a number that
#: takes one or two minutes
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
    """A word of the keyholder that is not a prompt."""

    #: the keyholder has read an answer
    ANSWERED = "answered"
    #: the keyholder derives a key; the iterations follow
    DERIVING = "deriving"
    #: the request was carried out
    DONE = "done"


class End(enum.StrEnum):
    """The keyholder's last word if it failed.

    A detail follows some of them.
    """

    #: ZFS refused; errno and call follow
    FAILED = "failed"
    #: three answers were wrong; the last purpose follows
    WRONG = "wrong"
    #: the answer is not one line of text
    BAD_ANSWER = "bad-answer"
    #: the standard input of a tool ended
    NO_ANSWER = "no-answer"
    #: iterations or salt on the disk are invalid; the iterations follow
    BAD_PARAMETERS = "bad-parameters"
    #: the kernel refused to protect the memory; the call and its error follow
    UNPROTECTED = "unprotected"


class Action(enum.StrEnum):
    """An action of the keyholder."""

    #: load the key; if it is loaded already, check the passphrase
    LOAD = "load"
    #: create the encryption root, which must not exist
    CREATE = "create"
    #: change the passphrase after the present one was entered
    CHANGE = "change"


@dataclass(frozen=True)
class Request:
    """A request to the keyholder, which is its command line.

    :ivar root: the encryption root
    :ivar typed: whether the keyholder's standard input is that of a tool
    :ivar iterations: of PBKDF2 for a new key
    :ivar properties: of an encryption root to be created
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
        """Return the command line that parse() reads."""
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
