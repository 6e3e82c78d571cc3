# SPDX-License-Identifier: BSD-2-Clause
"""The option ask_password_domain: its qube is recorded and is not removed."""

import asyncio
import types
import uuid

import pytest
from qubes.exc import QubesVMInUseError, StoragePoolException

from qubes_storage_zfs.driver import events, prompts
from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.zfs import runtime


def domain(name, **properties):
    return types.SimpleNamespace(
        name=name, klass="AppVM", uuid=uuid.uuid4(), **properties
    )


def pool_that_asks_in(name, **options):
    return ZfsEncryptedPool(
        name="work", zpool_name="tank", ask_password_domain=name, **options
    )


@pytest.fixture
def app(monkeypatch):
    app = types.SimpleNamespace(
        domains={name: domain(name) for name in ("gui", "other")},
        pools={"varlibqubes": object(), "work": pool_that_asks_in("gui")},
        vmm=types.SimpleNamespace(offline_mode=False),
    )
    app.domains["dom0"] = domain("dom0", app=app)
    app.domains["dom0"].klass = "AdminVM"
    monkeypatch.setattr(runtime.of(prompts.CurrentApplication), "app", app)
    return app


def load(app):
    """Fire the event of qubesd when it has loaded qubes.xml."""
    events.loaded_any(app.domains["dom0"])


def test_the_prompt_qube_cannot_be_removed_while_the_pool_exists(app):
    load(app)
    with pytest.raises(QubesVMInUseError) as caught:
        events.removing(app, app.domains["gui"])
    assert str(caught.value).startswith(
        "Cannot remove gui: the pool work shows its passphrase prompt there"
    )
    events.removing(app, app.domains["other"])
    # a new qube of the same name
    events.removing(app, domain("gui"))
    del app.pools["work"]
    events.removing(app, app.domains["gui"])


def test_qubes_xml_records_the_uuid_of_the_prompt_qube(app):
    assert "ask_password_domain_uuid" not in app.pools["work"].config
    load(app)
    config = app.pools["work"].config
    gui = app.domains["gui"]
    assert config["ask_password_domain_uuid"] == str(gui.uuid)
    config.pop("driver")
    reloaded = ZfsEncryptedPool(**config)
    assert reloaded.ask_domain.find(app, "") is gui
    # a recorded UUID is not replaced
    app.domains["gui"] = domain("gui")
    load(app)
    assert app.pools["work"].config["ask_password_domain_uuid"] == str(gui.uuid)


def test_a_pool_without_the_option_has_no_prompt_qube(app):
    pool = app.pools["work"] = pool_that_asks_in(None)
    load(app)
    assert pool.ask_domain is None
    assert not any("ask" in name for name in pool.config)
    events.removing(app, app.domains["gui"])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("gone", "names the qube gone, which does not exist; create it first"),
        ("disp1", "names the qube disp1, which Qubes removes when it stops"),
        ("far", "names the qube far, a RemoteVM, which cannot show a prompt"),
        ("a b", "must be the name of a qube"),
    ],
)
def test_an_unsuitable_prompt_qube_is_refused(app, name, reason):
    app.domains["disp1"] = domain("disp1", auto_cleanup=True)
    app.domains["far"] = domain("far")
    app.domains["far"].klass = "RemoteVM"
    with pytest.raises(StoragePoolException, match=reason):
        asyncio.run(pool_that_asks_in(name).setup())
