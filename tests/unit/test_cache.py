"""Trained models on disk: found again, never mistaken, never half, whatever happens to them."""

import collections
import contextlib
import dataclasses
import enum
import errno
import functools
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

from vplib import cache, models, paths, seeding, training
from vplib.nets import gan
from vplib.nets import stacked as batched
from vplib.runner.cli import cli

CHUNK, CHUNKS = 4, 4  # models trained in one go in these tests, and how often
SETTINGS = dict(
    num_epochs=2, lr=0.1, batch_size=8, momentum=0.9, weight_decay=0.0, optimizer="sgd", seed=0
)


def build():
    return models.mlp((6,), 3, hidden=(5,))


def pool():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(40, 6, generator=rng), torch.randint(3, (40,), generator=rng)


def train(num_models=CHUNK, **changes):
    subsets = training.half_splits(40, num_models)
    arguments = dict(build=build, subsets=subsets, form="batched", **SETTINGS) | changes
    images, labels = (
        arguments.pop(k, v) for k, v in zip(("images", "labels"), pool(), strict=True)
    )
    return training.fit_many(images=images, labels=labels, **arguments)


def same(a, b):
    pairs = [(a.state[name], b.state[name]) for name in b.state]
    return a.state.keys() == b.state.keys() and all(torch.equal(x, y) for x, y in pairs)


def contents(ensemble):
    """A hash of all weights, for another process to compare."""
    return contents_of(ensemble.state)


def contents_of(state):
    return cache.fingerprint(dict(sorted(state.items())))


def whole_files():
    """The names of the models kept, after a look that each is what its name says."""
    found = [path for path in cache.files() if path.suffix == ".safetensors"]
    assert all(cache.read(path.stem) is not None for path in found)
    return found


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """An empty cache, nothing counted and nothing told; a warning nobody expects is an error."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VPLIB_CACHE", str(folder))
    monkeypatch.setattr(cache, "counts", {"reused": 0, "trained": 0})
    monkeypatch.setattr(cache, "_told", set())
    monkeypatch.setitem(training.CHUNK, "cpu", CHUNK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield folder


@pytest.fixture(scope="module")
def undisturbed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.CHUNK, "cpu", CHUNK)
        return train(CHUNK * CHUNKS, keep=False)


def told(record):
    """The texts of warnings, each of which is one line."""
    texts = [str(w.message) for w in record]
    assert all("\n" not in text for text in texts)
    assert all(Path(w.filename) == Path(__file__) for w in record)  # it points at the caller
    return texts


# Found again


@pytest.mark.parametrize("form", ["batched", "loop"])
def test_an_equal_call_reuses_equal_models(form):
    first = train(6, form=form)
    assert cache.counts == {"reused": 0, "trained": 6}
    files = whole_files()
    assert len(files) == (2 if form == "batched" else 6)
    second = train(6, form=form)
    assert cache.counts == {"reused": 6, "trained": 6} and whole_files() == files
    plain = train(6, form=form, keep=False)
    assert same(first, second) and same(first, plain)
    images = pool()[0]
    assert torch.equal(first.logits(images), second.logits(images))
    assert torch.equal(first.subsets, second.subsets)
    assert cache.counts == {"reused": 6, "trained": 12}


def test_nothing_is_kept_where_nothing_should_be(place):
    train(keep=False)
    assert not place.exists()


def test_models_with_buffers_are_reused():
    def build():
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))

    first, second = (train(build=build, form="auto") for _ in range(2))
    assert cache.counts == {"reused": 4, "trained": 4} and same(first, second)
    assert second.state["1.num_batches_tracked"].tolist() == [6] * 4
    assert same(second, train(build=build, form="auto", keep=False))


def test_what_was_reused_can_be_trained_on():
    train()
    again = train()
    before = again.state["1.weight"].clone()
    images, labels = pool()
    training.fit(again.model(0), images, labels, num_epochs=1)
    again.state["1.weight"] += 1
    assert torch.equal(train().state["1.weight"], before)


# Anything slow


def test_what_is_kept_is_computed_once_and_read_after():
    asked = []

    def compute():
        asked.append(1)
        weights = torch.arange(6.0).view(2, 3).requires_grad_()
        return {"weights": weights, "tied": weights, "turned": weights.t(), "count": torch.ones(())}

    like = {"weights": torch.zeros(2, 3), "turned": torch.zeros(3, 2), "count": torch.zeros(())}
    like["tied"] = like["weights"]
    key = compute.__name__, 0.5
    first, second = (cache.kept(key, compute, like, num_models=3) for _ in range(2))
    assert len(asked) == 1 and cache.counts == {"reused": 3, "trained": 3}
    for found in (first, second):
        assert list(found["turned"].shape) == [3, 2] and found["turned"][2].tolist() == [2, 5]
        assert torch.equal(found["tied"], torch.arange(6.0).view(2, 3)) and found["count"] == 1
        assert not any(value.requires_grad for value in found.values())
    assert cache.kept(("other",), compute, like).keys() == first.keys() and len(asked) == 2
    assert cache.counts == {"reused": 3, "trained": 4} and len(whole_files()) == 2


def test_nothing_is_kept_without_parts(place):
    made = {"a": torch.ones(2)}
    found = [cache.kept(None, lambda: made, made)["a"].tolist() for _ in range(2)]
    assert found == [[1, 1]] * 2 and cache.counts == {"reused": 0, "trained": 2}
    assert not place.exists()


def test_another_torch_computes_anew(monkeypatch):
    one, zero = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    cache.kept(("a",), lambda: one, one)
    monkeypatch.setattr(torch, "__version__", torch.__version__ + ".1")
    assert cache.kept(("a",), lambda: zero, one)["a"] == 0


UNKNOWN = {
    "a lock": lambda: threading.Lock(),
    "a generator": lambda: (i for i in range(3)),
    "an open file": lambda: open(os.devnull),
    "a function that holds one": lambda: (lambda held: lambda x: held)(threading.Lock()),
    "an object that holds one": lambda: types.SimpleNamespace(lock=threading.Lock()),
    "an object that cannot be looked into": lambda: Closed(),
    "a tensor without values": lambda: torch.zeros(3, device="meta"),
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "lists without an end": lambda: functools.reduce(lambda held, _: [held], range(5000), []),
}


class Closed:
    def __reduce_ex__(self, protocol):
        raise OSError("closed")


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_what_is_unknown_is_computed_anew_and_said_once(unknown, place):
    value, made = UNKNOWN[unknown](), iter(range(9))
    with pytest.warns(UserWarning) as record:
        for _ in range(2):
            state = cache.kept(
                (1, value), lambda: {"a": torch.tensor(next(made))}, {"a": torch.tensor(0)}
            )
    (text,) = told(record)
    assert text.startswith("what is trained here cannot be kept (") and len(text) < 200
    assert state["a"] == 1 and not place.exists()
    with contextlib.suppress(AttributeError):
        value.close()


def test_an_unknown_part_of_a_loss_trains_anew():
    held = threading.Lock()

    def loss(outputs, labels):
        with held:
            return nn.functional.cross_entropy(outputs, labels)

    with pytest.warns(UserWarning, match="cannot be kept .a _thread.lock does not tell what it h"):
        first, second = (train(loss=loss, form="loop") for _ in range(2))
    assert same(first, second) and cache.counts == {"reused": 0, "trained": 2 * CHUNK}


# What decides a model


@pytest.fixture
def key(monkeypatch):
    """A function that returns the key under which a call would look for its first models."""
    looked = []
    monkeypatch.setattr(cache, "read", looked.append)
    monkeypatch.setattr(cache, "write", lambda key, state: None)

    def key(**changes):
        looked.clear()
        train(**({"num_epochs": 1} | changes))
        return looked[0]

    return key


def typed(source, name="Net"):
    """A class as a notebook's cell makes it: in no file."""
    space = {"__name__": "__main__", "nn": nn, "torch": torch}
    exec(source, space)
    return space[name]


NET = """
class Base(nn.Module):
    factor = 2

    def forward(self, x):
        return self.last(x * self.factor)

class Net(Base):
    def __init__(self, scale=1.0, mask=None):
        super().__init__()
        self.last, self.scale, self.mask = nn.Linear(6, 3), scale, mask
        self.register_buffer("shift", torch.zeros(6), persistent=False)

    def forward(self, x, kinds=(1, 2), *, mode="a"):
        if mode in {"a", "b", "c", "d"}:
            x = x * self.scale + self.shift
        return [super(Net, self).forward(x) for _ in kinds][-1]
"""


MODEL = """
class Net(torch.nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held
    def forward(self, x):
        return x * self.held
found = torch.nn.Sequential(Net({}))
"""


def held_key(cell, value):
    """The key of what one of `CELLS` makes with a value."""
    space = {"__name__": "__main__", "F": nn.functional, "np": np, "nn": nn, "torch": torch}
    space |= {m.__name__: m for m in (collections, dataclasses, enum, functools, types)}
    exec(textwrap.dedent(CELLS[cell]).replace("VALUE", value), space)
    return cache.fingerprint(space["found"])


def changed(tensor, row=0):
    tensor = tensor.clone()
    tensor[row] = tensor[row] + 1e-3 if tensor.is_floating_point() else (tensor[row] + 1) % 3
    return tensor


def other_weights():
    model = build()
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    return model


def frozen():
    model = build()
    model[1].weight.requires_grad_(False)
    return model


SUBSETS = training.half_splits(40, CHUNK)
CHANGES = {
    "images": dict(images=changed(pool()[0])),
    "images' type": dict(images=pool()[0].double(), build=lambda: build().double()),
    "labels": dict(labels=changed(pool()[1])),
    "soft labels": dict(labels=nn.functional.one_hot(pool()[1]).float()),
    "a row of a subset": dict(subsets=changed(SUBSETS, (0, 0))),
    "the order of a subset": dict(subsets=SUBSETS.flip(1)),
    "the order of the models": dict(subsets=SUBSETS.flip(0)),
    "width": dict(build=lambda: models.mlp((6,), 3, hidden=(6,))),
    "depth": dict(build=lambda: models.mlp((6,), 3, hidden=(5, 5))),
    "activation": dict(build=lambda: models.mlp((6,), 3, hidden=(5,), activation="tanh")),
    "initial weights": dict(build=other_weights),
    "num_epochs": dict(num_epochs=2),
    "lr": dict(lr=0.1000001),
    "batch_size": dict(batch_size=9),
    "momentum": dict(momentum=0.8),
    "weight_decay": dict(weight_decay=1e-9),
    "optimizer": dict(optimizer="adam"),
    "seed": dict(seed=1),
    "form": dict(form="loop"),
}


def test_every_argument_changes_the_key(key):
    keys = {name: key(**change) for name, change in {"nothing": {}, **CHANGES}.items()}
    assert len(set(keys.values())) == len(keys), keys


def test_other_changes_do_not_change_the_key(key):
    images, labels = pool()
    torch.manual_seed(7)
    same = [
        dict(description="another text"),
        dict(build=lambda: build()),
        dict(images=images.clone(), labels=labels.clone(), subsets=SUBSETS.clone()),
        dict(images=images.t().contiguous().t()),  # other strides
    ]
    assert {key(**change) for change in same} == {key()}


def test_frozen_weights_change_the_key(key):
    assert key(build=frozen, form="loop") != key(form="loop")


def test_a_layer_used_twice_changes_the_key():
    layer = nn.Linear(3, 3)
    once, twice = nn.Sequential(layer), nn.Sequential(layer, layer)
    assert cache.fingerprint(once) != cache.fingerprint(twice)


def test_settings_that_a_layer_does_not_print_change_the_key():
    with torch.random.fork_rng():
        layers = []
        for heads in (1, 2):
            torch.manual_seed(0)
            layers.append(nn.MultiheadAttention(4, heads))
    assert repr(layers[0]) == repr(layers[1])
    assert cache.fingerprint(layers[0]) != cache.fingerprint(layers[1])


@pytest.mark.parametrize(
    "before, after",
    [
        ("* self.scale + ", "+ self.scale + "),
        ("x * self.factor", "x * self.factor + 0"),
        ("factor = 2", "factor = 3"),
        ("kinds=(1, 2)", "kinds=(1, 2, 3)"),
        ('mode="a"', 'mode="z"'),
        ('"d"}', '"e"}'),
        ("torch.zeros(6)", "torch.ones(6)"),
        ("for _ in kinds][-1]", "for _ in kinds][0]"),
        ("return self.last", "return self.eval().last"),
    ],
)
def test_the_code_of_a_module_changes_the_key(key, before, after):
    assert NET.count(before) == 1
    first, second = (typed(NET.replace(before, text)) for text in (before, after))
    assert key(build=first, form="loop") != key(build=second, form="loop")


def test_what_torch_makes_models_of_can_be_kept():
    def made():
        torch.manual_seed(0)
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        return nn.LSTM(3, 3), nn.TransformerEncoderLayer(8, 2), normed, torch.strided, torch.device

    with torch.random.fork_rng():
        assert cache.fingerprint(made()) == cache.fingerprint(made())


def test_equal_code_typed_elsewhere_does_not_change_the_key(key):
    keys = {key(build=typed(text), form="loop") for text in (NET, "\n\n# a remark\n" + NET)}
    assert len(keys) == 1


def test_the_attributes_of_a_module_change_the_key(key):
    net = typed(NET)
    given = [(1.0,), (2.0,), (1.0, torch.zeros(2000)), (1.0, torch.eye(2000)[1000]), (1.0, len)]
    keys = {key(build=lambda a=a: net(*a), form="loop") for a in given}
    functions = [typed(f"def f(x): return x + {n}", "f") for n in (1, 2)]
    keys |= {key(build=lambda f=f: net(1.0, f), form="loop") for f in functions}
    assert len(keys) == 7
    again = key(build=lambda: net(1.0, typed("def f(x): return x + 1", "f")), form="loop")
    assert again in keys  # no address is in it


def test_torchs_version_and_the_training_code_change_the_key(key, monkeypatch):
    keys = {key()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", torch.__version__ + ".1")
        keys.add(key())
    monkeypatch.setattr(training, "_TRAINING_CODE", training._TRAINING_CODE + "\n# a line")
    keys.add(key())
    assert len(keys) == 3


def test_a_changed_training_code_does_not_meet_an_old_model(monkeypatch):
    train()
    for module in (training, batched, seeding):
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert text in training._TRAINING_CODE
    monkeypatch.setattr(training, "_TRAINING_CODE", training._TRAINING_CODE + "# a line")
    train()
    assert cache.counts == {"reused": 0, "trained": 8}


def test_the_device_changes_the_key(key, monkeypatch):
    asked, plain = [], cache.fingerprint
    monkeypatch.setattr(cache, "fingerprint", lambda *p: (asked.append(p), plain(*p))[1])
    found = key()
    (parts,) = (p for p in asked if plain(*p) == found)
    assert "cpu" in parts
    assert plain(*("cuda" if part == "cpu" else part for part in parts)) != found
    if torch.cuda.is_available():
        images, labels = pool()
        assert key(images=images.cuda(), labels=labels.cuda(), subsets=SUBSETS.cuda()) != found


def test_fingerprints_do_not_run_into_each_other():
    parts = [
        (1, 23), (12, 3), ("1", 23), (), ("",), ("", ""), (None,), (0,), (0.0,), (False,),
        (torch.zeros(2),), (torch.zeros(1, 2),), (torch.zeros(2).int(),), (torch.zeros(0),),
        (torch.zeros(0, 2),), (torch.tensor(0.0),), (torch.zeros(1), torch.zeros(1)),
        ({"a": 1},), ({"a": 2},), ({"a": {"b": 1}},), ({"b": 1},), ({"a": 1, "b": 1},), ({},),
    ]  # fmt: skip
    assert len({cache.fingerprint(*p) for p in parts}) == len(parts)


SMOOTHED = "F.cross_entropy(o, t, label_smoothing=v)"
CELLS = {  # in each, VALUE decides what `found` computes
    "a variable of a closure": f"""
        def make(v):
            return lambda o, t: {SMOOTHED}
        found = make(VALUE)""",
    "a variable of an outer closure": f"""
        def make(v):
            def loss(o, t):
                return (lambda: {SMOOTHED})()
            return loss
        found = make(VALUE)""",
    "a default": f"def found(o, t, v=VALUE): return {SMOOTHED}",
    "a default by name": f"def found(o, t, *, v=VALUE): return {SMOOTHED}",
    "an attribute of a function": """
        def found(x): return x * found.v
        found.v = VALUE""",
    "a global": f"""
        v = VALUE
        def found(o, t): return {SMOOTHED}""",
    "a global that an inner function reads": f"""
        v = VALUE
        def found(o, t): return [{SMOOTHED} for _ in range(2)][0] + (lambda: {SMOOTHED})()""",
    "a global of a function that is called": f"""
        v = VALUE
        def inner(o, t): return {SMOOTHED}
        def found(o, t): return inner(o, t)""",
    "two functions that call each other": """
        v = VALUE
        def odd(x): return even(x - 1) if x else v
        def even(x): return odd(x - 1) if x else -v
        found = odd""",
    "a global tensor": """
        weights = torch.tensor([1.0, VALUE])
        def found(o, t): return (o * weights).sum()""",
    "a global array": """
        weights = np.array([1.0, VALUE])
        def found(o, t): return (o * weights).sum()""",
    "a global dict": """
        settings = {"a": [1, (VALUE, None)], "b": {1, 2}}
        def found(o, t): return settings["a"][1][0]""",
    "a dict that nobody may change": """
        settings = types.MappingProxyType({"a": VALUE})
        def found(o, t): return settings["a"]""",
    "a namespace": """
        cfg = types.SimpleNamespace(v=VALUE)
        def found(o, t): return cfg.v""",
    "a module of the user's": """
        mine = types.ModuleType("mine")
        exec("v = VALUE\\ndef inner(x): return x * v", vars(mine))
        mine.itself = mine
        def found(x): return mine.inner(x) + mine.itself.inner(x)""",
    "a global model": """
        teacher = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(teacher.weight, VALUE); torch.nn.init.zeros_(teacher.bias)
        def found(o, t): return teacher(o)""",
    "a partial": """
        def inner(v, o, t): return v
        found = functools.partial(inner, VALUE)""",
    "a name of a partial": "found = functools.partial(F.cross_entropy, label_smoothing=VALUE)",
    "a bound method": """
        class Loss:
            def __init__(self, v): self.v = v
            def of(self, o, t): return self.v
        found = Loss(VALUE).of""",
    "an object": """
        class Loss:
            def __init__(self, v): self.v, self.me, self.f = v, self, lambda: v
            def __call__(self, o, t): return self.v
        found = Loss(VALUE)""",
    "an object within objects": """
        class Held: pass
        found = Held()
        found.a = [Held(), {"b": Held()}]
        found.a[1]["b"].v = VALUE""",
    "slots": """
        class Loss:
            __slots__ = "v"
            def __init__(self, v): self.v = v
        found = Loss(VALUE)""",
    "a class": """
        class Loss:
            v = VALUE
        found = Loss""",
    "a class's methods": """
        v = VALUE
        class Base:
            @classmethod
            def a(cls): return v
        class Loss(Base):
            def __call__(self, o, t): return super().a()
        found = Loss()""",
    "a property": """
        class Loss:
            @property
            def v(self): return VALUE
        found = Loss()""",
    "a static method": """
        class Loss:
            @staticmethod
            def v(): return VALUE
        found = Loss()""",
    "a dataclass": """
        @dataclasses.dataclass(frozen=True)
        class Loss:
            v: float
        found = Loss(VALUE)""",
    "a member": """
        class Kind(enum.Enum):
            a = 1.5 + VALUE
        found = Kind.a""",
    "a subclass of dict": "found = collections.OrderedDict(a=VALUE)",
    "a subclass of tuple": "found = collections.namedtuple('Pair', 'a b')(1, VALUE)",
    "a queue": "found = collections.deque([VALUE])",
    "decorated by torch": """
        @torch.no_grad()
        def found(x): return x * VALUE""",
    "decorated by Python": """
        @functools.cache
        def found(x): return x * VALUE""",
    "decorated by the user": """
        def twice(f):
            @functools.wraps(f)
            def doubled(x): return 2 * f(x)
            return doubled
        @twice
        def found(x): return x * VALUE""",
    "an except clause": """
        def found(x):
            try: return x.a
            except AttributeError: return VALUE""",
    "the middle of an array": """
        weights = np.zeros(2000); weights[1000] = VALUE
        def found(o, t): return (o * weights).sum()""",
    "the mask of an array": """
        found = np.ma.array([1.0, 2.0], mask=[VALUE > 0.5, False])""",
    "a list of tensors": """
        weights = [torch.zeros(2000) for _ in range(3)]; weights[1][1000] = VALUE
        def found(o, t): return sum((o * w).sum() for w in weights)""",
    "a list of functions": """
        steps = [lambda x: x + 1, lambda x: x * VALUE]
        def found(o, t): return steps[1](steps[0](o)).sum()""",
    "a helper": """
        def inner(x): return x * VALUE
        def found(o, t): return inner(o).sum()""",
    "a helper that the function imports": """
        import sys
        mine = sys.modules["mine_alone"] = types.ModuleType("mine_alone")
        exec("def inner(x): return x * VALUE", vars(mine))
        def found(o, t):
            from mine_alone import inner
            import no_such_module_anywhere
            return inner(o).sum()""",
    "a method of an object that is called": """
        class Scale:
            def __init__(self, v): self.v = v
            def __call__(self, x): return x * self.v
        scale = Scale(VALUE)
        def found(o, t): return scale(o).sum()""",
    "an abstract class": """
        import abc
        class Loss(abc.ABC):
            @abc.abstractmethod
            def of(self): return VALUE
        found = Loss""",
    "a cached property": """
        class Loss:
            @functools.cached_property
            def v(self): return VALUE
        found = Loss()""",
    "what a weak reference refers to": """
        import weakref
        class Held: pass
        held = Held()
        held.v = VALUE
        def found(x, held=held, reference=weakref.ref(held)): return x * reference().v""",
    "a generator's state": "found = torch.Generator().manual_seed(int(10 * VALUE))",
    "a numpy generator's state": "found = np.random.default_rng(int(10 * VALUE))",
    "a model's number": MODEL.format("VALUE"),
    "a model's tensor": MODEL.format("torch.tensor(VALUE)"),
    "a model's function": MODEL.format("(lambda v: lambda x: x * v)(VALUE)"),
    "a model's pre-hook": MODEL.format("None")
    + "\nfound[0].register_forward_pre_hook(lambda m, x, v=VALUE: (x[0] * v,))",
    "a model's partial": MODEL.format("functools.partial(torch.mul, VALUE)"),
    "a model's dict": MODEL.format("{'a': {'b': VALUE}}"),
    "a model's object": MODEL.format("types.SimpleNamespace(v=[VALUE])"),
    "a global of a model": MODEL.format("None").replace("self.held", "v") + "\nv = VALUE",
    "a hook": MODEL.format("None")
    + "\nfound[0].register_forward_hook(lambda m, x, y, v=VALUE: y * v)",
}


@pytest.mark.parametrize("cell", CELLS)
def test_every_value_changes_the_key(cell):
    keys = [held_key(cell, value) for value in ("0.0", "0.9", "0.0")]
    assert keys[0] == keys[2] != keys[1]


def test_equal_contents_have_equal_keys_in_every_process():
    source = "print(t.json.dumps([t.held_key(cell, '0.9') for cell in t.CELLS]))"
    here = [held_key(cell, "0.9") for cell in CELLS]
    assert len(set(here)) == len(here)
    for seed in ("1", "2"):  # of Python's hashes, which order sets
        assert json.loads(finish(start(source, PYTHONHASHSEED=seed))) == here


def test_what_a_name_stands_for_elsewhere_does_not_change_the_key():
    found = [
        typed(f"mean, other = {v}, {v}\ndef f(x, other): return x.mean() + other", "f")
        for v in (1, 2)
    ]
    assert cache.fingerprint(found[0]) == cache.fingerprint(found[1])


def test_code_counts_by_what_it_does():
    sources = [
        "def f(a, b): return a - b",
        "def f(b, a): return b - a",  # another result by name
        "def f(a, b): return b - a",
        "def f(a, *, b): return a - b",
        "def f(a, b): return (a - b,)",
        "def f(a, b):\n    yield a - b",
    ]
    assert len({cache.fingerprint(typed(source, "f")) for source in sources}) == len(sources)
    assert cache.fingerprint(torch.relu) != cache.fingerprint(torch.tanh)
    assert cache.fingerprint([1], 2) != cache.fingerprint([1, 2])


def test_the_code_of_vplib_counts_and_what_it_remembers_does_not(monkeypatch):
    keys = [cache.fingerprint(training.fit_many)]
    cache.counts["trained"] += 1
    keys.append(cache.fingerprint(training.fit_many))
    monkeypatch.setattr(training, "check_finite", lambda loss, lr: None)
    keys.append(cache.fingerprint(training.fit_many))
    assert keys[0] == keys[1] != keys[2]


def test_a_fingerprint_is_cheap():
    a, model = 0.1, models.mlp((64,), 10, hidden=(32,))
    parts = model, lambda o, t: nn.functional.cross_entropy(o, t, label_smoothing=a)
    cache.fingerprint(*parts)
    start = time.process_time()
    for _ in range(20):
        cache.fingerprint(*parts)
    assert (time.process_time() - start) / 20 < 0.02  # a fifteenth of that, measured


def test_a_loss_with_another_number_trains_other_models():
    def smoothed(a):
        return lambda o, t: nn.functional.cross_entropy(o, t, label_smoothing=a)

    sharp, smooth, again = (train(loss=smoothed(a), form="loop") for a in (0, 0.9, 0.0 + 0.9))
    assert not same(sharp, smooth) and same(smooth, again)
    assert same(sharp, train(form="loop"))  # equal weights, under a key of its own
    assert cache.counts == {"reused": CHUNK, "trained": 3 * CHUNK}


# Damaged and foreign files


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def flipped(raw, place, bit=3):
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    return bytes(changed)


def foreign(raw):
    return safetensors.torch.save({"weight": torch.zeros(3)})


def forged(raw):
    """Whole, with this very key, but with other weights than the hash says."""
    size = int.from_bytes(raw[:8], "little")
    said = json.loads(raw[8 : 8 + size])["__metadata__"]
    state = {name: value + 1 for name, value in safetensors.torch.load(raw).items()}
    return safetensors.torch.save(state, said)


DAMAGES = {
    "empty": lambda raw: b"",
    "cut in the length": lambda raw: raw[:5],
    "cut in the header": lambda raw: raw[:100],
    "cut in the tensors": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "zeros": lambda raw: bytes(len(raw)),
    "a bit of the length": lambda raw: flipped(raw, 0),
    "a huge length": lambda raw: flipped(raw, 7, 6),
    "a bit of the key": lambda raw: flipped(raw, raw.index(b'"key":"') + 9, 0),
    "a bit of a name": lambda raw: flipped(raw, raw.index(b"1.weight"), 1),
    "a bit of a shape": lambda raw: flipped(raw, raw.index(b'"shape":[') + 9, 0),
    "a bit of the first tensor": lambda raw: flipped(raw, 8 + int.from_bytes(raw[:8], "little"), 0),
    "a bit of the last tensor": lambda raw: flipped(raw, -1, 0),
    "another safetensors file": foreign,
    "other weights": forged,
    "a pickle": lambda raw: pickle.dumps({"1.weight": 1}),
    "a text": lambda raw: b"no model at all\n" * 50,
    "not utf-8": lambda raw: raw[:8] + b"\xff" * (len(raw) - 8),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_trained_anew_and_replaced(damage, undisturbed):
    train(CHUNK * CHUNKS)
    path = whole_files()[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning) as record:
        again = train(CHUNK * CHUNKS)
    (text,) = told(record)
    assert text.startswith(f"the cached model {path} ") and text.endswith(": training anew")
    assert same(again, undisturbed)
    assert cache.counts == {"reused": CHUNK * (CHUNKS - 1), "trained": CHUNK * (CHUNKS + 1)}
    assert len(whole_files()) == len(cache.files()) == CHUNKS
    assert same(train(CHUNK * CHUNKS), undisturbed)  # and no warning now


def test_a_model_under_another_models_name(undisturbed):
    train(CHUNK * CHUNKS)
    one, other, *_ = whole_files()
    one.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="is damaged or foreign: training anew"):
        assert same(train(CHUNK * CHUNKS), undisturbed)
    assert len(whole_files()) == CHUNKS


ALIKE = {
    "another name": lambda s: {f"{name}_": value for name, value in s.items()},
    "a name more": lambda s: s | {"more": torch.zeros(1)},
    "a name less": lambda s: dict(list(s.items())[1:]),
    "another shape": lambda s: {name: value.flatten() for name, value in s.items()},
    "fewer models": lambda s: {name: value[:-1] for name, value in s.items()},
    "another type": lambda s: {name: value.double() for name, value in s.items()},
}


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_a_valid_hash_over_other_names_and_shapes_is_not_believed(change):
    first = train()
    (path,) = whole_files()
    cache.write(path.stem, change(cache.read(path.stem)))
    assert cache.read(path.stem) is not None  # whole, and of this key
    with pytest.warns(UserWarning, match="is damaged or foreign: training anew"):
        assert same(train(), first)
    assert same(train(), first)
    assert cache.counts == {"reused": CHUNK, "trained": 2 * CHUNK}


def test_a_generator_of_another_shape_is_not_believed():
    def fitted():
        make = lambda: nn.ModuleList(gan.dcgan((1, 8, 8), 2))  # noqa: E731
        nets, images = seeding.initialized(make, 0), torch.rand(6, 1, 8, 8)
        return gan.fit_gan(*nets, images.fill_(0.5), num_steps=1, batch_size=4).state_dict()

    first = fitted()
    (path,) = whole_files()
    cache.write(path.stem, {"weight": torch.zeros(3)})
    with pytest.warns(UserWarning, match="is damaged or foreign: training anew"):
        assert contents_of(fitted()) == contents_of(first)
    assert cache.counts == {"reused": 0, "trained": 2}


def test_no_flipped_bit_is_believed():
    train()
    (path,) = whole_files()
    raw, good = path.read_bytes(), cache.read(path.stem)
    believed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(len(raw)):
            path.write_bytes(flipped(raw, place, place % 8))
            found = cache.read(path.stem)
            if found is not None:  # in the padding, or a letter's case in a number
                believed += 1
                assert found.keys() == good.keys()
                assert all(torch.equal(found[name], good[name]) for name in good)
    assert believed < 8


@pytest.mark.parametrize("pickled", [pickle.dumps, lambda bomb: torch_file(bomb)])
def test_a_pickle_is_never_loaded(pickled, tmp_path):
    first = train()
    (path,) = whole_files()
    path.write_bytes(pickled(Bomb(tmp_path / "exploded")))
    with pytest.warns(UserWarning, match="training anew"):
        assert same(train(), first)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()  # it was a real one


def torch_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_each_kind_of_trouble_is_told_once(undisturbed):
    train(CHUNK * CHUNKS)
    for path, damage in zip(
        whole_files(), (lambda raw: raw[:9], foreign, lambda raw: b"", forged), strict=True
    ):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning) as record:
        assert same(train(CHUNK * CHUNKS), undisturbed)
    assert len(told(record)) == 2
    assert {"cannot be read" in text for text in told(record)} == {True, False}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_where_the_file_should_be_is_not_waited_for():
    first = train()
    (path,) = whole_files()
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="cannot be read .no regular file.: training anew"):
        assert same(train(), first)
    assert path.is_file() and same(train(), first)  # it was replaced


def test_a_folder_where_the_file_should_be(monkeypatch):
    first = train()
    (path,) = whole_files()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning) as record:
        assert same(train(), first)
    assert len(told(record)) == 2 and cache.files() == []


# A cache that cannot be written


class Written:
    """A file of which a hook gets hold when half of it is written."""

    def __init__(self, *arguments, halfway):
        self.file, self.halfway = open(*arguments), halfway

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.halfway()
        self.file.write(data[len(data) // 2 :])


def fail(error):
    def fail(*args, **kwargs):
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = PermissionError(errno.EACCES, "Permission denied")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
FAULTS = {
    "full": lambda patch: patch.setattr(cache, "open", fail(FULL), raising=False),
    "full midway": lambda patch: patch.setattr(
        cache, "open", lambda *a: Written(*a, halfway=fail(FULL)), raising=False
    ),
    "full on renaming": lambda patch: patch.setattr(os, "replace", fail(FULL)),
    "denied": lambda patch: patch.setattr(cache, "open", fail(DENIED), raising=False),
    "no folder": lambda patch: patch.setattr(Path, "mkdir", fail(READ_ONLY)),
    "read-only": lambda patch: patch.setattr(cache, "open", fail(READ_ONLY), raising=False),
}


def cannot_keep(record, reason):
    (text,) = told(record)
    assert text == (
        f"trained models cannot be kept in {paths.cache_root()} ({reason}); results are right, but "
        "the next run trains again. Free some space, or set VPLIB_CACHE to a folder that can be "
        "written"
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cache_that_cannot_be_written(fault, undisturbed, monkeypatch):
    reason = FULL if "full" in fault else DENIED if fault == "denied" else READ_ONLY
    with monkeypatch.context() as patch:
        FAULTS[fault](patch)
        with pytest.warns(UserWarning) as record:
            found = train(CHUNK * CHUNKS)
    cannot_keep(record, reason.strerror)
    assert same(found, undisturbed) and cache.files() == []
    assert same(train(CHUNK * CHUNKS), undisturbed) and len(whole_files()) == CHUNKS


def test_a_disk_that_fills_up_keeps_what_was_kept(undisturbed, monkeypatch):
    train(subsets=training.half_splits(40, CHUNK * CHUNKS)[:CHUNK])
    with monkeypatch.context() as patch:
        FAULTS["full midway"](patch)
        with pytest.warns(UserWarning) as record:
            assert same(train(CHUNK * CHUNKS), undisturbed)
    cannot_keep(record, FULL.strerror)
    assert cache.counts["reused"] == CHUNK and len(whole_files()) == len(cache.files()) == 1


def test_a_file_where_the_folder_should_be(place, undisturbed):
    place.write_text("no folder")
    with pytest.warns(UserWarning) as record:
        assert same(train(CHUNK * CHUNKS), undisturbed)
    cannot_keep(record, os.strerror(errno.EEXIST))
    assert place.read_text() == "no folder"


def test_a_warning_that_is_an_error_leaves_no_partial_file(monkeypatch):
    FAULTS["full midway"](monkeypatch)
    with pytest.raises(UserWarning, match="cannot be kept"):
        train()
    assert cache.files() == []


def test_models_are_for_all_who_may_read_the_folder():
    before = os.umask(0o022)
    try:
        train()
    finally:
        os.umask(before)
    (path,) = whole_files()
    assert path.stat().st_mode & 0o777 == 0o644


USERS = """
import json, os, sys, warnings
import torch
from vplib import cache

os.umask(0o077)
for root, (user, groups), keys in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    os.environ["VPLIB_CACHE"] = root
    os.chdir("/")
    os.setgroups(groups)
    os.setgid(groups[0])
    os.setuid(user)
    had = 0
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for key in map(cache.fingerprint, keys):
            if (found := cache.read(key)) is None:
                cache.write(key, {"a": torch.ones(2)})
            else:
                had += int(found["a"].tolist() == [1, 1])
    print(json.dumps([had, [str(w.message) for w in record]]), flush=True)
    os._exit(0)
"""


def as_users(*steps):
    """What each (cache, user, keys) found there, and the warnings of it."""
    command = [sys.executable, "-c", USERS, json.dumps(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(getattr(os, "getuid", int)() != 0, reason="only root can be two users")
def test_two_users_share_a_cache():
    """The first of a class (its group: 6500) makes the folders that the second writes to."""
    first, second, stranger = (6501, [6601, 6500]), (6502, [6602, 6500]), (6503, [6603])
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        roots = {mode: Path(base, oct(mode)) for mode in (0o2775, 0o775, 0o777, 0o755)}
        steps = []
        for mode, root in roots.items():
            root.mkdir()
            os.chown(root, 6501, 6500)
            root.chmod(mode)
            steps += [(str(root), first, ["one", "two"]), (str(root), second, ["one", "three"])]
            steps += [(str(root), first, ["three"]), (str(root), stranger, ["one", "four", "five"])]
        found = as_users(*steps)
        for mode, root in roots.items():
            had, told = zip(*found[:4], strict=True)
            del found[:4]
            refused = [("cannot be kept in" in text) for texts in told for text in texts]
            assert had == ((0, 1, 0, 1) if mode == 0o755 else (0, 1, 1, 1)), oct(mode)
            writers = {0o777: 3, 0o755: 1}.get(mode, 2)
            assert refused == [True] * (3 - writers), told  # once a user, however many models
            for path in root.rglob("*"):
                about = path.stat()
                assert about.st_gid == 6500 or mode == 0o777, path
                assert about.st_mode & 0o7777 == mode & (0o666 if path.is_file() else 0o2777), path


# Interrupted


def test_ctrl_c_keeps_finished_chunks(undisturbed, monkeypatch):
    plain, calls = training._fit_chunk, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_chunk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(CHUNK * CHUNKS)
    assert len(whole_files()) == 2
    assert same(train(CHUNK * CHUNKS), undisturbed) and cache.counts["reused"] == 2 * CHUNK


def test_ctrl_c_while_writing_leaves_no_partial_file(undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        stop = fail(KeyboardInterrupt())
        patch.setattr(cache, "open", lambda *a: Written(*a, halfway=stop), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(CHUNK * CHUNKS)
    assert cache.files() == []
    assert same(train(CHUNK * CHUNKS), undisturbed)


def test_a_loss_that_is_not_finite_keeps_the_models_before_it():
    images, labels = pool()
    images[SUBSETS[3, 0]] = 1e30
    rows = SUBSETS[:, :4].clone()
    rows[:3] = torch.arange(4) + (0 if SUBSETS[3, 0] > 3 else 4)
    with pytest.raises(FloatingPointError, match="training diverged"):
        train(images=images, labels=labels, subsets=rows, form="loop", lr=1e30)
    assert len(whole_files()) == len(cache.files()) <= 3


# Other processes


def start(source, **environment):
    """A process of its own, with this module imported and chunks as small as here."""
    first = f"import test_cache as t\nt.training.CHUNK['cpu'] = {CHUNK}\n"
    return subprocess.Popen(
        [sys.executable, "-c", first + source],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def kill(process):
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -9


SLOWLY = f"""
t.training.check_finite = lambda loss, lr: t.time.sleep(0.5)
t.train({CHUNK * CHUNKS})
"""
AGAIN = f"""
found = t.train({CHUNK * CHUNKS})
plain = t.train({CHUNK * CHUNKS}, keep=False)
net = t.cache.fingerprint(t.typed(t.NET))
print(t.json.dumps([t.same(found, plain), t.cache.counts, t.contents(found), net]))
"""


def test_kill_9_while_training(place, undisturbed):
    victim = start(SLOWLY)
    deadline = time.monotonic() + 100
    while len(list(place.rglob("*.safetensors"))) < 2:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    kill(victim)
    kept = len(whole_files())
    assert 2 <= kept < CHUNKS
    equal, counts, hashed, net = json.loads(finish(start(AGAIN)))
    assert counts == {"reused": CHUNK * kept, "trained": CHUNK * (2 * CHUNKS - kept)}
    assert equal and hashed == contents(undisturbed)
    assert net == cache.fingerprint(typed(NET))  # the order of a set differs between processes
    assert len(whole_files()) == CHUNKS


HALFWAY = f"""
opened = []
def stop():
    if len(opened) == 2:
        print("halfway", flush=True)
        t.time.sleep(600)
def half(*arguments):
    opened.append(arguments)
    return t.Written(*arguments, halfway=stop)
t.cache.open = half
t.train({CHUNK * CHUNKS})
"""


def test_kill_9_while_writing(place, undisturbed, monkeypatch):
    victim = start(HALFWAY)
    assert victim.stdout.readline() == "halfway\n", victim.stderr.read()
    kill(victim)
    (good,) = whole_files()
    (half,) = set(cache.files()) - {good}
    assert half.name.startswith(".") and half.stat().st_size > 0
    shown = CliRunner().invoke(cli, ["cache"])
    assert shown.exit_code == 0 and shown.stdout.startswith("2 files, 0.0 MB of trained models")
    seen, plain = [], safetensors.safe_open
    monkeypatch.setattr(
        safetensors, "safe_open", lambda p, **k: (seen.append(Path(p)), plain(p, **k))[1]
    )
    assert same(train(CHUNK * CHUNKS), undisturbed)
    assert cache.counts == {"reused": CHUNK, "trained": CHUNK * (CHUNKS - 1)}
    assert len(seen) == CHUNKS and half not in seen and half.exists()
    assert len(whole_files()) == CHUNKS
    (place / "other.txt").write_text("stays")
    cleared = CliRunner().invoke(cli, ["cache", "--clear"])
    assert cleared.stdout.startswith(f"removing {CHUNKS + 1} files")
    assert cache.files() == [] and [p.name for p in place.iterdir()] == ["other.txt"]


def crowd(num_processes):
    """Trains the same in so many processes from the same moment on; prints what each found."""
    train(2, keep=False)  # torch loads the rest of itself, once for all
    context = multiprocessing.get_context("fork")
    together, answers = context.Barrier(num_processes), context.SimpleQueue()

    def student():
        together.wait(60)
        found = train(CHUNK * CHUNKS)
        answers.put((contents(found), sum(cache.counts.values()) - 2))

    processes = [context.Process(target=student) for _ in range(num_processes)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    print(json.dumps([found, [process.exitcode for process in processes]]))


@pytest.mark.parametrize("num_processes", [2, 8])
def test_many_processes_at_once(num_processes, undisturbed):
    process = start(f"t.crowd({num_processes})")
    found, codes = json.loads(finish(process))
    assert codes == [0] * num_processes
    assert found == [[contents(undisturbed), CHUNK * CHUNKS]] * num_processes
    assert len(whole_files()) == len(cache.files()) == CHUNKS
    assert same(train(CHUNK * CHUNKS), undisturbed) and cache.counts["trained"] == 0


# Where they lie


def test_the_cache_is_the_same_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "repository_root", lambda: tmp_path / "clone")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        for given, expected in (
            ("../kept", tmp_path / "kept"),
            ("~/kept", tmp_path / "home" / "kept"),
            (str(tmp_path / "a b"), tmp_path / "a b"),
        ):
            monkeypatch.setenv("VPLIB_CACHE", given)
            assert paths.cache_root() == expected
    monkeypatch.setenv("VPLIB_CACHE", "~/kept")
    train()
    assert [p.parents[2] for p in whole_files()] == [tmp_path / "home" / "kept"]


def test_a_relative_cache_outside_a_clone(monkeypatch):
    monkeypatch.setattr(paths, "repository_root", lambda: None)
    monkeypatch.setenv("VPLIB_CACHE", "kept")
    with pytest.raises(ValueError, match="VPLIB_CACHE=kept must be an absolute path outside a cl"):
        train()


@pytest.mark.parametrize("given", [None, ""])
def test_the_cache_is_not_in_the_repository_by_default(monkeypatch, given):
    monkeypatch.delenv("VPLIB_CACHE") if given is None else monkeypatch.setenv("VPLIB_CACHE", given)
    root = paths.cache_root()
    assert root.is_absolute() and root.name == "vplib"
    repository = Path(__file__).resolve().parents[2]
    assert repository not in (root.resolve(), *root.resolve().parents)


def test_a_file_that_vanishes_while_it_is_listed(monkeypatch):
    cache.write(cache.fingerprint(1), {"a": torch.ones(2)})
    listed = [*cache.files(), paths.cache_root() / "models" / "gone.safetensors"]
    monkeypatch.setattr(cache, "files", lambda: listed)
    result = CliRunner().invoke(cli, ["cache"])
    assert result.exit_code == 0 and "1 files" in result.output


def test_clear_says_what_it_could_not_remove(monkeypatch):
    cache.write(cache.fingerprint(1), {"a": torch.ones(2)})

    def refuse(self, missing_ok=False):  # root removes anything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    result = CliRunner().invoke(cli, ["cache", "--clear"])
    assert result.exit_code == 2 and "1 files could not be removed" in result.output
