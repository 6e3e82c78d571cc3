"""What keys.py and the keyholder agree on: the last words, and the bounds.

qubesd imports this module, and never the keyholder's program.
"""

import enum

#: of PBKDF2: what zfs(8) accepts at least, and what takes a minute or two
ITERATIONS = range(100_000, 100_000_001)


class End(str, enum.Enum):
    """The keyholder's last word, if it is not ``done``.

    A detail follows some of them.
    """

    #: an errno, and the call of ZFS
    FAILED = "failed"
    #: the last purpose: three answers did not do
    WRONG = "wrong"
    #: the answer is not one line of text
    BAD_ANSWER = "bad-answer"
    #: the standard input, a person's, ended
    NO_ANSWER = "no-answer"
    #: what ZFS says of salt and iterations, which no zfs(8) set
    BAD_PARAMETERS = "bad-parameters"
    #: what the kernel refused
    UNPROTECTED = "unprotected"
