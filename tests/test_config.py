"""Settings of a machine (a YAML file) and of the network (the tree): what holds and what is not."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from moat_kv import config, errors
from moat_kv.path import P, Path


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv(config.FILE_VARIABLE, raising=False)
    monkeypatch.delenv(config.URL_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))


def test_without_a_file_the_defaults_hold() -> None:
    loaded = config.load()
    assert loaded == config.Config()
    assert loaded.client.url == ("tcp://127.0.0.1:27586",)
    assert loaded.source is None


def test_the_users_file_goes_before_the_machines(tmp_path: pathlib.Path) -> None:
    for folder, name in (("machine", "m"), ("user", "u")):
        place = tmp_path / folder / config.APPLICATION
        place.mkdir(parents=True)
        (place / config.FILE_NAME).write_text(f"runner: {{name: {name}}}\n")
        assert config.load().runner.name == name
        assert config.load().source == str(place / config.FILE_NAME)


def test_a_named_file_goes_before_the_variable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flag.yaml").write_text("output: json\n")
    (tmp_path / "variable.yaml").write_text("output: yaml\n")
    monkeypatch.setenv(config.FILE_VARIABLE, str(tmp_path / "variable.yaml"))
    assert config.load().output == "yaml"
    assert config.load(tmp_path / "flag.yaml").output == "json"


def test_a_named_file_that_is_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.BadConfig, match=r"none\.yaml: there is no such file"):
        config.load(tmp_path / "none.yaml")


def test_the_variable_for_the_url_goes_before_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("client: {url: 'tcp://file:1', name: c}\n")
    monkeypatch.setenv(config.URL_VARIABLE, "tcp://a:1 unix:///b")
    loaded = config.load(tmp_path / "c.yaml")
    assert loaded.client.url == ("tcp://a:1", "unix:///b")
    assert loaded.client.name == "c"


def test_every_kind_of_setting_is_read() -> None:
    loaded = config.parse(
        """
        client: {url: [tcp://a:1, tcp://b:2], connect_timeout_s: 3}
        server: {data: /d, port: 0, unix: /s, sync_s: 1.5}
        runner:
        """
    )
    assert loaded.client.url == ("tcp://a:1", "tcp://b:2")
    assert loaded.client.connect_timeout_s == 3.0
    assert loaded.server == config.ServerConfig(data="/d", port=0, unix="/s", sync_s=1.5)
    assert loaded.runner == config.RunnerConfig()


def test_an_empty_text_is_all_defaults() -> None:
    assert config.parse("") == config.Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("sever: {}", "sever: unknown; known here: client, output", id="top key"),
        pytest.param("server: {prot: 1}", r"server\.prot: unknown; .*server\.port", id="inner key"),
        pytest.param("source: x", "source: unknown", id="a field that is no setting"),
        pytest.param("1: x", "1: unknown", id="key that is no text"),
        pytest.param("[1]", "top level: a mapping", id="list"),
        pytest.param("server: 3", "server: a mapping", id="number for a mapping"),
        pytest.param("server: {port: '1'}", r"server\.port: an integer .* not '1'", id="text"),
        pytest.param("server: {port: true}", r"server\.port: an integer", id="bool for an int"),
        pytest.param("server: {port: -1}", r"server\.port: at least 0", id="below"),
        pytest.param("server: {port: 65536}", r"server\.port: at most 65535", id="above"),
        pytest.param("client: {connect_timeout_s: 0}", "above 0", id="zero"),
        pytest.param("client: {connect_timeout_s: .nan}", "above 0", id="nan"),
        pytest.param("client: {url: 3}", r"client\.url: a text or a list", id="url"),
        pytest.param("client: {url: []}", r"client\.url: at least one", id="no url"),
        pytest.param("runner: {queue: 0}", r"runner\.queue: at least 1", id="queue"),
        pytest.param("runner: {isolate: 1}", r"runner\.isolate: a text", id="isolate-no-text"),
        pytest.param("runner: {isolate: both}", r"runner\.isolate: one of process", id="isolate"),
        pytest.param("output: html", "output: one of table, json", id="output"),
        pytest.param("a: [", "a.yaml: not YAML", id="no YAML"),
        pytest.param("output: json\noutput: yaml", "not YAML: .*duplicate", id="key given twice"),
        pytest.param("x: !!python/object:os.system {}", "not YAML", id="tag that would be code"),
    ],
)
def test_wrong_settings_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(errors.BadConfig, match=message) as caught:
        config.parse(text, source="a.yaml")
    assert str(caught.value).startswith("bad configuration, a.yaml: ")


def test_the_places_are_those_of_the_reference() -> None:
    places = config.Places()
    assert places.run == P(":.moat.kv.run")
    assert places.state == P(":.moat.kv.state")
    assert places.proc == P(":.moat.kv.code.proc")
    assert places.module == P(":.moat.kv.code.module")
    assert places.error == P(":.moat.kv.error")
    assert places.model == P(":.moat.kv.model")
    assert places.lock == P(":.moat.kv.lock")
    assert places.config == P(":.moat.kv.config")


class FakeReader:
    """A client that knows one entry."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.asked: list[Path] = []

    async def get(self, path: Path) -> dict[str, Any]:
        self.asked.append(path)
        return {"rev": 0} if self.value is None else {"rev": 1, "value": self.value}


@pytest.mark.anyio
async def test_places_are_read_from_the_tree() -> None:
    reader = FakeReader({"places": {"run": "my.jobs", "state": Path("my", "states")}, "x": 1})
    places = await config.load_places(reader)
    assert reader.asked == [P(":.moat.kv.config")]
    assert places.run == P("my.jobs")
    assert places.state == P("my.states")
    assert places.proc == config.Places().proc


@pytest.mark.anyio
@pytest.mark.parametrize("value", [None, {}, {"places": None}, {"places": {}}])
async def test_without_overrides_the_default_places_hold(value: Any) -> None:
    assert await config.load_places(FakeReader(value)) == config.Places()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(3, "a mapping", id="no mapping"),
        pytest.param({"places": ["run"]}, "places: a mapping", id="list"),
        pytest.param({"places": {"jobs": "a"}}, r"places\.jobs: unknown", id="unknown"),
        pytest.param({"places": {"config": "a"}}, r"places\.config: unknown", id="fixed"),
        pytest.param({"places": {"run": "a..b"}}, r"places\.run: bad path", id="bad path"),
        pytest.param({"places": {"run": 3}}, r"places\.run", id="no text"),
        pytest.param({"places": {"run": ":"}}, r"places\.run: the root", id="root"),
        pytest.param({"places": {"run": ":.moat.kv.code.proc.x"}}, "lies within proc", id="within"),
        pytest.param({"places": {"run": ":.moat.kv.state"}}, "lies within", id="the same"),
    ],
)
async def test_impossible_places_are_refused(value: Any, message: str) -> None:
    with pytest.raises(errors.BadConfig, match=message):
        await config.load_places(FakeReader(value))
