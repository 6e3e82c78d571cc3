# SPDX-License-Identifier: BSD-2-Clause
"""The base of all local qubes."""

import logging
import string
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import lxml.etree
import qubes.events

TAG_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")


class Features(dict):
    """Texts of a qube by name; changes are events."""

    def __init__(self, vm):
        super().__init__()
        self.vm = vm

    def __setitem__(self, key, value):
        if value is None or isinstance(value, bool):
            value = "1" if value else ""
        changes = {"feature": key, "value": str(value)}
        if key in self:
            changes["oldvalue"] = self[key]
        before = "domain-feature-pre-set:" + key
        self.vm.fire_event(before, pre_event=True, **changes)
        super().__setitem__(key, str(value))
        self.vm.fire_event("domain-feature-set:" + key, **changes)

    def __delitem__(self, key):
        super().__delitem__(key)
        self.vm.fire_event("domain-feature-delete:" + key, feature=key)

    def update(self, *others, **kwargs):
        """Set one after the other."""
        for key, value in dict(*others, **kwargs).items():
            self[key] = value


class Tags(set):
    """Tags of a qube; changes are events."""

    def __init__(self, vm):
        super().__init__()
        self.vm = vm

    def add(self, elem):
        """Add *elem* if it is missing."""
        if not set(elem) <= TAG_CHARACTERS:
            raise ValueError("Invalid character in tag")
        if elem not in self:
            super().add(elem)
            self.vm.fire_event("domain-tag-add:" + elem, tag=elem)

    def remove(self, elem):
        """Remove *elem*, or KeyError."""
        super().remove(elem)
        self.vm.fire_event("domain-tag-delete:" + elem, tag=elem)

    def discard(self, elem):
        """Remove *elem* if it exists."""
        if elem in self:
            self.remove(elem)

    def update(self, *others):
        """Add one after the other."""
        for other in others:
            for elem in other:
                self.add(elem)


class LocalVM(qubes.events.Emitter):
    """Base of all qubes; *xml* is None for a new one."""

    #: attributes the XML file keeps, with the conversion from text
    PROPERTIES: ClassVar[dict[str, Callable[[str], Any]]] = {
        "qid": int,
        "name": str,
        "uuid": uuid.UUID,
    }
    name: str
    qid: int
    storage: Any  # a qubes.storage.Storage once its volumes are made

    def __init__(self, app, xml, **kwargs):
        super().__init__()
        self.app = app
        self.xml = xml
        self.features = Features(self)
        self.tags = Tags(self)
        self.volumes = {}
        self.storage = None
        self.uuid = uuid.uuid4()
        if xml is not None:
            for node in xml.iterfind("./properties/property"):
                convert = self.PROPERTIES[node.get("name")]
                kwargs[node.get("name")] = convert(node.text)
        for name, value in kwargs.items():
            if name not in self.PROPERTIES:
                raise AttributeError(f"qubes have no property {name!r}")
            setattr(self, name, value)
        self.log = logging.getLogger("vm." + self.name)

    @property
    def klass(self):
        """The name of the class in the API."""
        return type(self).__name__

    def __str__(self):
        return self.name

    def __repr__(self):
        return f"<{self.klass} {self.name}>"

    def load_extras(self):
        """Load features and tags, when all qubes exist."""
        for node in self.xml.iterfind("./features/feature"):
            self.features[node.get("name")] = node.text or ""
        for node in self.xml.iterfind("./tags/tag"):
            self.tags.add(node.get("name"))

    def __xml__(self):
        element = lxml.etree.Element("domain")
        element.set("id", f"domain-{self.qid}")
        element.set("class", self.klass)
        parts = {
            part: lxml.etree.SubElement(element, part)
            for part in ("properties", "features", "tags")
        }
        for name in self.PROPERTIES:
            value = getattr(self, name, None)
            if value is not None:
                node = lxml.etree.SubElement(parts["properties"], "property")
                node.set("name", name)
                node.text = str(value)
        for name, value in self.features.items():
            node = lxml.etree.SubElement(parts["features"], "feature")
            node.set("name", name)
            node.text = value
        for name in sorted(self.tags):
            lxml.etree.SubElement(parts["tags"], "tag", name=name)
        return element
