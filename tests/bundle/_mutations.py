"""Damaged and forged bundles: one seeded change each, with digests that agree again where a forger would see to it."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from tests.bundle._models import bundle_files, forge, generation, sign

STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 63, 64, 4095, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63), 1 << 70, 1.5),
    *("", "x", "../x", "/etc/hostname", "\ud800", "\x00", "nan", "0" * 64, "a" * 5000, [], [[]], {}, ["x", 1]),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value but the whole."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*at, key)
        yield from places(below, (*at, key))


def change_value(rng: random.Random, value: Any) -> None:
    """Put something strange, or something near, in one place of a JSON value."""
    place = rng.choice(list(places(value)))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    if type(old) is int and rng.random() < 0.5:
        holder[place[-1]] = old + rng.choice((-64, -4, -1, 1, 4, 64, 4096))
    elif isinstance(old, str) and old and rng.random() < 0.3:
        at = rng.randrange(len(old))
        holder[place[-1]] = old[:at] + rng.choice("0123abcxyz/.") + old[at + 1 :]
    else:
        holder[place[-1]] = copy.deepcopy(rng.choice(STRANGE))


def change_structure(rng: random.Random, value: Any) -> None:
    """Take out, double, exchange or add an entry of a JSON object or list."""
    holders = [value, *(found for place in places(value) if isinstance(found := _at(value, place), dict | list))]
    holder = rng.choice([found for found in holders if found] or [value])
    if isinstance(holder, dict):
        key = rng.choice(list(holder))
        action = rng.choice(("remove", "rename", "add", "exchange"))
        if action == "remove":
            del holder[key]
        elif action == "rename":
            holder[f"{key}_"] = holder.pop(key)
        elif action == "add":
            holder["more"] = rng.choice(STRANGE[:17])
        else:
            other = rng.choice(list(holder))
            holder[key], holder[other] = holder[other], holder[key]
        return
    at, other = rng.randrange(len(holder)), rng.randrange(len(holder))
    action = rng.choice(("remove", "double", "exchange", "reverse"))
    if action == "remove":
        del holder[at]
    elif action == "double":
        holder.insert(other, copy.deepcopy(holder[at]))
    elif action == "exchange":
        holder[at], holder[other] = holder[other], holder[at]
    else:
        holder.reverse()


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def change_bytes(rng: random.Random, path: Path) -> None:
    """Flip, replace, take out or insert some bytes; cut the end off, or add to it."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(content)))
    action = rng.choice(("flip", "flip", "replace", "remove", "insert", "cut", "extend"))
    if action == "flip" and content:
        content[at] ^= 1 << rng.randrange(8)
    elif action == "replace":
        content[at : at + 4] = rng.randbytes(4)
    elif action == "remove":
        del content[at : at + rng.randrange(1, 64)]
    elif action == "insert":
        content[at:at] = rng.randbytes(rng.randrange(1, 64))
    elif action == "cut":
        del content[at:]
    else:
        content += rng.randbytes(rng.randrange(1, 5000))
    path.write_bytes(content)


def rehash(bundle: Path) -> None:
    """As somebody does who knows the format."""
    forge(bundle, lambda manifest: None)


def edit_manifest(change: Callable[[random.Random, Any], None], rng: random.Random, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())["manifest"]
    change(rng, manifest)
    sign(bundle / "manifest.json", manifest)


def edit_plan(change: Callable[[random.Random, Any], None], rng: random.Random, bundle: Path) -> None:
    path = generation(bundle) / "plan.json"
    plan = json.loads(path.read_text())
    change(rng, plan)
    path.write_text(json.dumps(plan))
    rehash(bundle)


def edit_places(rng: random.Random, bundle: Path) -> None:
    """Change what a graph says of the places of its data."""
    path = rng.choice(sorted(generation(bundle).glob("segments/*.onnx")))
    model = onnx.load(path, load_external_data=False)
    tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
    if not tensors:
        change_bytes(rng, path)
    else:
        tensor = rng.choice(tensors)
        entry = rng.choice(list(tensor.external_data))
        action = rng.choice(("number", "text", "key", "remove", "type", "shape"))
        if action == "number":
            digits = [part for part in entry.value.replace("|", ";").split(";") if part.isdigit()]
            if digits:
                old = rng.choice(digits)
                new = int(old) + rng.choice((-4096, -64, -1, 1, 64, 4096, 1 << 40, -int(old) - 1))
                entry.value = entry.value.replace(old, str(new))
        elif action == "text":
            entry.value = rng.choice(
                ("", "0", "-1", "../manifest.json", "/etc/hostname", "plan.json", "9" * 30, "0x10")
            )
        elif action == "key":
            entry.key = rng.choice(("location", "offset", "length", "checksum", "prepacked_0", "x", ""))
        elif action == "remove":
            tensor.external_data.remove(entry)
        elif action == "type":
            tensor.data_type = rng.randrange(28)
        elif tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 7, 1 << 20, (1 << 63) - 1))
        path.write_bytes(model.SerializeToString())
    rehash(bundle)


def _some_file(rng: random.Random, bundle: Path, pattern: str) -> Path:
    found = sorted(generation(bundle).glob(pattern))
    return rng.choice(found or parts(bundle))


def parts(bundle: Path) -> list[Path]:
    """All files but the manifest."""
    return [path for path in bundle_files(bundle) if path.name != "manifest.json"]


def exchange_files(rng: random.Random, bundle: Path) -> None:
    suffix = rng.choice((".onnx", ".data", ""))
    found = [path for path in parts(bundle) if path.name.endswith(suffix)] or parts(bundle)
    one, other = rng.choice(found), rng.choice(found)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def remove_something(rng: random.Random, bundle: Path) -> None:
    victim = rng.choice([*bundle_files(bundle), *(path for path in bundle.rglob("*") if path.is_dir())])
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()


def add_something(rng: random.Random, bundle: Path) -> None:
    folder = rng.choice([bundle, *(path for path in bundle.rglob("*") if path.is_dir())])
    place = folder / rng.choice(("more.data", ".hidden", "g-0123456789abcdef", "0000.data.bak", ".DS_Store"))
    kind = rng.choice(("file", "folder", "link", "pipe", "loop"))
    if kind == "file":
        place.write_bytes(rng.randbytes(100))
    elif kind == "folder":
        (place / "d" / "d").mkdir(parents=True)
    elif kind == "link":
        place.symlink_to("/etc/hostname")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(place)


def put_in_place(rng: random.Random, bundle: Path) -> None:
    """A link, pipe or folder in the place of a file or folder."""
    victim = rng.choice(list(bundle.rglob("*")))
    kind = rng.choice(("link", "outside", "pipe", "folder", "loop"))
    spare = bundle.parent / "spare"
    victim.rename(spare)
    if kind == "link":
        victim.symlink_to(spare)
    elif kind == "outside":
        victim.symlink_to("/etc")
    elif kind == "pipe":
        os.mkfifo(victim)
    elif kind == "folder":
        victim.mkdir()
    else:
        victim.symlink_to(victim)


def change_permissions(rng: random.Random, bundle: Path) -> None:
    rng.choice([bundle, *bundle.rglob("*")]).chmod(rng.choice((0, 0o444, 0o222, 0o111, 0o777, 0o7777)))


def rename_generation(rng: random.Random, bundle: Path) -> None:
    folder = generation(bundle)
    folder.rename(folder.with_name(rng.choice(("g-0123456789abcdef", "g", "h-0123456789abcdef"))))


def bytes_of(pattern: str, *, signed: bool) -> Callable[[random.Random, Path], None]:
    def change(rng: random.Random, bundle: Path) -> None:
        change_bytes(rng, _some_file(rng, bundle, pattern))
        if signed:
            rehash(bundle)

    return change


def signed_exchange(rng: random.Random, bundle: Path) -> None:
    exchange_files(rng, bundle)
    rehash(bundle)


MUTATIONS: dict[str, Callable[[random.Random, Path], None]] = {
    "manifest value": lambda rng, bundle: edit_manifest(change_value, rng, bundle),
    "manifest value again": lambda rng, bundle: edit_manifest(change_value, rng, bundle),
    "manifest structure": lambda rng, bundle: edit_manifest(change_structure, rng, bundle),
    "manifest bytes": lambda rng, bundle: change_bytes(rng, bundle / "manifest.json"),
    "plan value": lambda rng, bundle: edit_plan(change_value, rng, bundle),
    "plan structure": lambda rng, bundle: edit_plan(change_structure, rng, bundle),
    "plan bytes": bytes_of("plan.json", signed=False),
    "plan bytes, signed": bytes_of("plan.json", signed=True),
    "graph bytes": bytes_of("segments/*.onnx", signed=False),
    "graph bytes, signed": bytes_of("segments/*.onnx", signed=True),
    "graph places, signed": edit_places,
    "outputs bytes, signed": bytes_of("outputs.onnx", signed=True),
    "data bytes": bytes_of("segments/*.data", signed=False),
    "data bytes, signed": bytes_of("segments/*.data", signed=True),
    "model bytes, signed": bytes_of("portable/*", signed=True),
    "files exchanged": exchange_files,
    "files exchanged, signed": signed_exchange,
    "something removed": remove_something,
    "something added": add_something,
    "something in its place": put_in_place,
    "permissions": change_permissions,
    "generation renamed": rename_generation,
}

UNNOTICEABLE = frozenset(
    {
        "graph bytes, signed",
        "graph places, signed",
        "data bytes, signed",
        "model bytes, signed",
        "files exchanged, signed",
    }
)
"""After these a bundle may be the whole and consistent bundle of another model, which has another answer."""


def mutate(seed: int, bundle: Path) -> str:
    """Change the bundle in one way; returns which."""
    rng = random.Random(seed)
    kind = rng.choice(list(MUTATIONS))
    MUTATIONS[kind](rng, bundle)
    return kind
