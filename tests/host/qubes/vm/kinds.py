# SPDX-License-Identifier: BSD-2-Clause
"""The kinds of qubes, which differ in how their volumes are kept."""

from typing import Any

import qubes.config
import qubes.events
import qubes.exc
from qubes.vm import LocalVM
from qubes.vm.qubesvm import QubesVM

ROOT = qubes.config.defaults["root_img_size"]
PRIVATE = qubes.config.defaults["private_img_size"]


def _persistent(name, size):
    kept = {"snap_on_start": False, "save_on_stop": True}
    return {"name": name, **kept, "rw": True, "size": size}


def _snapshot(name):
    kept = {"snap_on_start": True, "save_on_stop": False}
    return {"name": name, **kept, "rw": True, "source": None}


def _volatile(size):
    kept = {"snap_on_start": False, "save_on_stop": False}
    return {"name": "volatile", **kept, "rw": True, "size": size}


class AdminVM(LocalVM):
    """dom0, which always exists, always runs and has no volumes."""

    name = "dom0"

    def is_running(self):
        """It always is."""
        return True

    def is_halted(self):
        """It never is."""
        return False


class _OwnRoot(QubesVM):
    """A qube with a root volume of its own."""

    def __init__(self, *args, **kwargs):
        self.volume_config = {
            "root": {**_persistent("root", ROOT), "source": None},
            "private": {**_persistent("private", PRIVATE), "source": None},
            "volatile": _volatile(ROOT),
        }
        super().__init__(*args, **kwargs)


class TemplateVM(_OwnRoot):
    """A template; app qubes start from its root volume."""

    DIRECTORY = "vm-templates"


class DisposableTemplate(QubesVM):
    """A qube that disposables may be based on."""

    PROPERTIES = {
        **QubesVM.PROPERTIES,
        "template_for_dispvms": lambda text: text == "True",
    }
    template_for_dispvms = False

    @property
    def dispvms(self):
        """All disposables based on this qube."""
        return (
            vm
            for vm in self.app.domains
            if getattr(vm, "template", None) is self
        )

    @qubes.events.handler("domain-pre-start")
    def on_domain_pre_start(self, _event, **_kwargs):
        """Refuse while a disposable runs on unprotected volumes."""
        if any(vol.snapshots_disabled for vol in self.volumes.values()):
            for vm in self.dispvms:
                if vm.is_running():
                    raise qubes.exc.QubesVMNotHaltedError(vm)


class StandaloneVM(DisposableTemplate, _OwnRoot):
    """A qube with volumes of its own."""


class _Based(QubesVM):
    """A qube with snapshots of the volumes of another."""

    PROPERTIES = {**QubesVM.PROPERTIES, "template": str}
    default_volume_config = {}
    _template: Any = None  # a qube, or its name until it is needed

    def __init__(self, app, xml, **kwargs):
        self.volume_config = {
            name: dict(config)
            for name, config in self.default_volume_config.items()
        }
        if kwargs.get("template") is not None:
            self._take_over(kwargs["template"])
        super().__init__(app, xml, **kwargs)

    def _take_over(self, template):
        """Take what *template* has more, when a new qube is made."""
        for name, config in template.volume_config.items():
            if name not in self.volume_config:
                config = {k: v for k, v in config.items() if k != "vid"}
                self.volume_config[name] = config

    @property
    def template(self):
        """The qube below; a change makes the snapshot volumes anew."""
        if isinstance(self._template, str):
            self._template = self.app.domains[self._template]
        return self._template

    @template.setter
    def template(self, value):
        if self.storage is None:
            self._template = value
            return
        if not self.is_halted():
            raise qubes.exc.QubesVMNotHaltedError(self)
        self._template = self.app.domains[value]
        self._renew_snapshots()

    def _renew_snapshots(self):
        for name, config in self.default_volume_config.items():
            if config["snap_on_start"]:
                self.volume_config[name] = dict(config)
                self.storage.init_volume(name, self.volume_config[name])


class AppVM(DisposableTemplate, _Based):
    """A qube that keeps only its private volume."""

    PROPERTIES = {**_Based.PROPERTIES, **DisposableTemplate.PROPERTIES}
    default_volume_config = {
        "root": _snapshot("root"),
        "private": _persistent("private", PRIVATE),
        "volatile": _volatile(ROOT),
    }

    def _renew_snapshots(self):
        super()._renew_snapshots()
        for vm in self.dispvms:
            vm._renew_snapshots()


class DispVM(_Based):
    """A qube that keeps no volume."""

    default_volume_config = {
        "root": _snapshot("root"),
        "private": _snapshot("private"),
        "volatile": _volatile(ROOT + PRIVATE),
    }

    def __init__(self, app, xml, **kwargs):
        if xml is None:
            template = kwargs["template"]
            if not getattr(template, "template_for_dispvms", False):
                raise qubes.exc.QubesValueError(
                    f"template_for_dispvms of {template} is not set"
                )
            kwargs.setdefault("name", f"disp{kwargs['qid']}")
        super().__init__(app, xml, **kwargs)
        if xml is None:
            self.features.update(template.features)
            self.tags.update(template.tags)

    def _take_over(self, template):
        super()._take_over(template)
        for name in self.default_volume_config:
            mine = self.volume_config[name]
            live = template.volumes[name].config
            mine["rw"] = live["rw"]
            for key in "pool", "ephemeral":
                if key in live:
                    mine.setdefault(key, live[key])


CLASSES = {
    cls.__name__: cls
    for cls in (AdminVM, TemplateVM, StandaloneVM, AppVM, DispVM)
}
