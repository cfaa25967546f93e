"""The registry from outside: real distributions in a temporary folder, real subprocesses, the real source tree."""

import importlib.metadata
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from stab.registry import Registry, StabError, suggest
from stab.stabilizers import stabilizers
from stab.tasks import tasks

GROUP = "stab.test_things"


def fresh():
    return Registry("thing", GROUP, lambda obj: isinstance(obj, int))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution: ``install("dist", {"name": "module:object"}, {"module": "source"})``."""

    def add(dist, points, modules=(), folder="site"):
        site = tmp_path / folder
        info = site / f"{dist}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(
            f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
        )
        for name, source in dict(modules).items():
            (site / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))

    return add


# Built-ins


def test_the_decorator_returns_its_object_and_keeps_the_order():
    registry = Registry("thing", GROUP, callable)

    @registry.register("zebra")
    def zebra():
        return 1

    @registry.register("ant2_b")
    class Ant:
        pass

    assert registry.get("zebra") is zebra
    assert registry.get("ant2_b") is Ant
    assert registry.names() == ["zebra", "ant2_b"]
    assert zebra() == 1


@pytest.mark.parametrize(
    "name", ["", "EMA", "2nd", "_x", "a-b", "a b", "a:b", "a+b", "é", "a\n", "a,b", "a=b"]
)
def test_a_malformed_name_is_refused(name):
    with pytest.raises(StabError, match="is not a thing name") as caught:
        fresh().register(name)(1)
    assert repr(name) in str(caught.value)


def test_a_duplicate_raises_and_names_both_places():
    registry = Registry("thing", GROUP, callable)

    def first():
        """Return nothing."""

    def second():
        """Return nothing."""

    registry.register("twin")(first)
    with pytest.raises(StabError, match="'twin' is registered twice") as caught:
        registry.register("twin")(partial(second))
    for function in (first, second):
        assert f"{__file__}:{function.__code__.co_firstlineno}" in str(caught.value)
    assert registry.get("twin") is first


def test_an_unknown_name_gets_a_suggestion_and_the_known_ones():
    with pytest.raises(StabError) as caught:
        stabilizers.get("emma")
    message = str(caught.value)
    assert message.startswith("Unknown stabilizer 'emma'. Did you mean 'ema'? Known: none, ema, ")
    assert "\n" not in message
    with pytest.raises(StabError, match=r"Unknown task 'hoper'\. Did you mean 'hopper'"):
        tasks.get("hoper")
    with pytest.raises(StabError, match=r"Unknown stabilizer 'qqqqqq'\. Known"):
        stabilizers.get("qqqqqq")


def test_suggest():
    assert suggest("polyack", ["ema", "polyak"]) == " Did you mean 'polyak'?"
    assert suggest("xyz", ["ema", "polyak"]) == ""
    assert suggest("xyz", []) == ""


def test_the_built_in_stabilizers_and_tasks():
    built_in = [
        "none",
        "ema",
        "polyak",
        "swa",
        "accumulation",
        "lr_decay",
        "weight_decay",
        "dropout",
    ]
    assert stabilizers.names()[: len(built_in)] == built_in
    assert tasks.names()[0] == "hopper"
    for entry in stabilizers.listing(load=True)[: len(built_in)]:
        assert entry.broken is None
        path, _, line = entry.origin.rpartition(":")
        assert Path(path).exists()
        assert int(line) > 0


# Plug-ins


def test_listing_imports_nothing_and_use_imports(install):
    install("dist-a", {"lazy": "plug_lazy:VALUE"}, {"plug_lazy": "VALUE = 7"})
    registry = fresh()
    registry.register("builtin")(1)
    assert registry.names() == ["builtin", "lazy"]
    entry = registry.listing()[1]
    assert (entry.name, entry.origin, entry.broken) == ("lazy", "dist-a 1.2: plug_lazy:VALUE", None)
    assert "plug_lazy" not in sys.modules
    assert registry.get("lazy") == 7
    assert "plug_lazy" in sys.modules
    assert registry.get("lazy") == 7
    assert registry.names() == ["builtin", "lazy"]
    assert [e.origin for e in registry.listing()] == [
        registry.listing()[0].origin,
        "dist-a 1.2: plug_lazy:VALUE",
    ]


def test_plugins_are_listed_alphabetically_after_built_ins(install):
    install("dist-a", {"zz": "plug_two:Z", "aa": "plug_two:A"}, {"plug_two": "A = 1\nZ = 2"})
    registry = fresh()
    registry.register("middle")(5)
    assert registry.names() == ["middle", "aa", "zz"]
    assert registry.get("zz") == 2
    assert registry.names() == ["middle", "aa", "zz"]  # loading one does not reorder a table


BROKEN = {
    "raises": ("plug_raises:X", "raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "syntax": ("plug_syntax:X", "def (", "SyntaxError"),
    "leaves": ("plug_leaves:X", "import sys; sys.exit('bye')", "SystemExit: bye"),
    "missing": ("plug_nowhere:X", None, "ModuleNotFoundError: No module named 'plug_nowhere'"),
    "attribute": ("plug_attribute:X", "Y = 1", "AttributeError"),
    "kind": ("plug_kind:X", "X = 'text'", "TypeError: 'text' is not a thing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_shown_with_its_reason_and_stops_nobody(install, name):
    value, source, reason = BROKEN[name]
    install("bad", {name: value}, {value.partition(":")[0]: source} if source else {})
    install("good", {"works": "plug_good:VALUE"}, {"plug_good": "VALUE = 3"})
    registry = fresh()
    registry.register("builtin")(1)
    assert [e.broken for e in registry.listing()] == [None, None, None]
    listing = {e.name: e for e in registry.listing(load=True)}
    assert listing[name].broken.startswith(reason)
    assert listing[name].origin == f"bad 1.2: {value}"
    assert listing["works"].broken is None
    assert listing["builtin"].broken is None
    assert registry.get("works") == 3
    with pytest.raises(StabError, match=f"thing '{name}' .* is broken") as caught:
        registry.get(name)
    assert reason in str(caught.value)
    assert caught.value.__cause__ is not None
    with pytest.raises(StabError) as unknown:
        registry.get("nothing_like_it")
    assert f"{name} is broken: {reason}" in str(unknown.value)


def test_a_plugin_may_not_have_a_malformed_name(install):
    install("bad", {"Mal-Formed": "plug_mal:VALUE"}, {"plug_mal": "VALUE = 3"})
    registry = fresh()
    with pytest.raises(StabError, match="expected lower-case letters"):
        registry.get("Mal-Formed")


def test_a_plugin_may_not_take_a_built_in_name(install):
    install("thief", {"taken": "plug_thief:VALUE"}, {"plug_thief": "VALUE = 3"})
    registry = Registry("thing", GROUP, callable)

    def mine():
        """Return nothing."""

    registry.register("taken")(mine)
    registry.register("other")(len)
    with pytest.raises(StabError, match="registered twice") as caught:
        registry.get("taken")
    assert f"{__file__}:{mine.__code__.co_firstlineno}" in str(caught.value)
    assert "thief 1.2: plug_thief:VALUE" in str(caught.value)
    listing = {e.name: e.broken for e in registry.listing()}
    assert "registered twice" in listing["taken"]
    assert listing["other"] is None
    assert registry.get("other") is len
    assert registry.names() == ["taken", "other"]


def test_two_plugins_may_not_share_a_name(install):
    install("one", {"both": "plug_one:VALUE", "one": "plug_one:VALUE"}, {"plug_one": "VALUE = 1"})
    install("two", {"both": "plug_two:VALUE"}, {"plug_two": "VALUE = 2"})
    registry = fresh()
    with pytest.raises(StabError, match="registered twice") as caught:
        registry.get("both")
    assert "one 1.2: plug_one:VALUE" in str(caught.value)
    assert "two 1.2: plug_two:VALUE" in str(caught.value)
    assert registry.get("one") == 1
    assert sorted(registry.names()) == ["both", "one"]


def test_one_distribution_seen_twice_on_the_path_is_one(install):
    install("same", {"once": "plug_same:VALUE"}, {"plug_same": "VALUE = 4"}, folder="a")
    install("same", {"once": "plug_same:VALUE"}, {"plug_same": "VALUE = 4"}, folder="b")
    assert fresh().get("once") == 4


def test_entry_points_are_asked_for_by_group(monkeypatch):
    asked = []
    point = importlib.metadata.EntryPoint("far", "sys:maxsize", GROUP)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **how: asked.append(how) or [point]
    )
    registry = fresh()
    assert registry.get("far") == sys.maxsize
    assert registry.listing()[0].origin == "unknown distribution: sys:maxsize"
    assert asked == [{"group": GROUP}]


@pytest.mark.parametrize(
    "wrong", ["plug_wrong:NotAMethod", "plug_wrong:instance", "plug_wrong:NoDataclass"]
)
def test_the_stabilizer_registry_takes_methods_only(wrong):
    class NotAMethod:
        pass

    from stab.stabilizers.ema import EMA

    class Bare(EMA):
        pass

    good, bad = (
        stabilizers._valid(EMA),
        {"NotAMethod": NotAMethod, "instance": EMA(), "NoDataclass": 3},
    )
    assert good
    assert not stabilizers._valid(bad[wrong.partition(":")[2]])


# Imports


@pytest.mark.parametrize(
    "code",
    [
        "import stab",
        "import stab.stabilizers",
        "import stab.tasks",
        "import stab.recipe, stab.registry, stab.gva, stab.engines.local, stab.run.cells, stab.comparison, stab.run.posthoc",
        "from stab.stabilizers import stabilizers; from stab.tasks import tasks;"
        " assert len(stabilizers.listing()) >= 8; assert tasks.listing()",
        "from stab.stabilizers import parse; parse('lr_decay+ema').apply(__import__('stab').Recipe())",
    ],
)
def test_imports_leave_heavy_libraries_alone(code):
    check = "; import sys; print([m for m in ('torch', 'mujoco', 'gymnasium', 'minari') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code + check],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"
