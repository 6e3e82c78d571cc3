# SPDX-License-Identifier: BSD-2-Clause
"""Which qube shows the passphrase prompt, how often, and who can change it."""

import subprocess

import pytest

from .dom0 import STORE, record, zfs

PASSPHRASE = "battery staple horse"
TYPED = f"{PASSPHRASE}\n".encode()
ROOT_OF_KEYS = "tank/encryption/vault"
UUID = "ask_password_domain_uuid"


@pytest.fixture(scope="module")
def vault(dom0, plain):
    """Create an encrypted pool with its prompt in the halted qube "screen"."""
    record("\n### the encrypted pool vault")
    zfs("zfs", "create", "tank/encryption")
    options = ("encryption=on", "keyformat=passphrase", "pbkdf2iters=100000")
    create = [word for option in options for word in ("-o", option)]
    subprocess.run(
        ["zfs", "create", *create, ROOT_OF_KEYS], input=TYPED, check=True
    )
    dom0.answer()
    dom0.run("qvm-create", "-P", plain, "-l", "black", "-t", "tmpl", "screen")
    dom0.run(*add("nowhere"), status=1, says="which does not exist")
    dom0.run(*add("screen"))
    dom0.run("qvm-create", "-P", "vault", "-l", "red", "-t", "tmpl", "secret")
    dom0.run("qvm-zfs", "lock", "vault")
    yield "secret"
    dom0.run("qvm-remove", "-f", "secret", "screen")
    zfs("zfs", "destroy", "-r", "tank/encryption")


def add(domain=None):
    options = ["-o", "zpool_name=tank"]
    if domain:
        options += ["-o", f"ask_password_domain={domain}"]
    return "qvm-pool", "add", *options, "vault", "zfs_encrypted"


def edit(dom0, right, wrong):
    """Change qubes.xml while qubesd does not run."""
    dom0.stop()
    text = STORE.read_text("utf-8")
    assert text.count(right) == 1
    STORE.write_text(text.replace(right, wrong), "utf-8")
    dom0.start()


def test_the_qube_that_shows_the_prompt_is_not_removed(dom0, vault):
    start = ("qvm-start", vault)
    dom0.run(*start, status=1, says="in screen, which is not running")
    remove = ("qvm-remove", "-f", "screen")
    why = (
        "Cannot remove screen: the pool vault shows its passphrase prompt there"
    )
    dom0.run(*remove, status=1, says=why)
    info = dom0.run("qvm-pool", "info", "vault", says=UUID)
    (recorded,) = (
        line.split()[1] for line in info.splitlines() if UUID in line
    )

    # as if the qube had been created later, under the same name
    other = "12345678-0000-4000-8000-000000000000"
    edit(dom0, f'{UUID}="{recorded}"', f'{UUID}="{other}"')
    says = "screen is not the one that ask_password_domain named"
    dom0.run(*start, status=1, says=says)
    # the remedy in doc/encryption.md
    edit(dom0, f' {UUID}="{other}"', "")
    dom0.run(*start, status=1, says="in screen, which is not running")
    dom0.run(*remove, status=1, says=why)
    assert dom0.asked() == []


def test_no_qube_can_redirect_or_repeat_the_prompt(dom0, vault):
    dom0.run("qvm-remove", "-f", vault)
    dom0.run("qvm-pool", "remove", "vault")
    dom0.answer(PASSPHRASE)
    dom0.run(*add())
    assert "needed by" not in dom0.asked()[0]
    dom0.run("qvm-create", "-P", "vault", "-l", "red", "-t", "tmpl", vault)
    dom0.run("qvm-zfs", "lock", "vault")

    # a restored backup may have set this property
    dom0.run("qvm-prefs", vault, "guivm", "screen")
    dom0.answer()
    start = ("qvm-start", vault)
    dom0.run(*start, status=1, says="prompt was cancelled")
    assert dom0.asked()[0].endswith(f'(needed by the qube "{vault}")')
    dom0.run(*start, status=1, says="shows no other prompt before")
    assert len(dom0.asked()) == 1
    # qvm-zfs in dom0 is not delayed
    dom0.run("qvm-zfs", "unlock", "vault", stdin=TYPED)
    dom0.run(*start)
    dom0.shutdown(vault)
    dom0.run("qvm-zfs", "lock", "vault")
    dom0.answer(PASSPHRASE)
    dom0.run(*start)
    assert len(dom0.asked()) == 1
    dom0.shutdown(vault)
    dom0.run("qvm-remove", "-f", vault)
    dom0.run("qvm-pool", "remove", "vault")
    dom0.run("qvm-create", "-P", "plain", "-l", "red", "-t", "tmpl", vault)
