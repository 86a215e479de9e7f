"""Models from outside the package: docs/extend.md runs as it stands, and mistakes are explained."""

from __future__ import annotations

import gc
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import torch
from pydantic import Field

import rediffuse as rd
from rediffuse import cli
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.exporting import export
from rediffuse.models import Model, ModelConfig, SequenceModel, external, model_class
from rediffuse.runs.run_folder import read_config, read_run
from rediffuse.testing import check_model, synthetic_interactions

PAGE = Path(__file__).parents[1] / "docs/extend.md"
MODULES = ("transitions", "convolution", "acme_models")

pytestmark = pytest.mark.filterwarnings("ignore:Leave-one-out leaks:rediffuse.errors.RediffuseWarning")


def files_of_the_page() -> dict[str, str]:
    blocks = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(dict(blocks)) == len(blocks)
    return dict(blocks)


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def project(split, tmp_path_factory) -> Path:
    """A folder with the files of the page and its data, in which its first command was run as the installed script."""
    folder, scripts = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("bin")
    for name, content in files_of_the_page().items():
        (folder / name).write_text(content, encoding="utf-8")
    split.dataset.save(folder / "data/mine")
    (scripts / "rediffuse").write_text("from rediffuse.cli import main\nmain()\n")
    command = re.search(r"^rediffuse (train transitions:Transitions .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert command is not None
    arguments = [*command[1].split(), "--split", "leave-one-out"]
    done = subprocess.run(
        [sys.executable, str(scripts / "rediffuse"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def forget_modules():
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def importable(project, monkeypatch, forget_modules) -> Path:
    monkeypatch.syspath_prepend(project)
    monkeypatch.chdir(project)
    return project


def run_command(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rediffuse", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds to it
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, " ".join(printed.err.split())


# --- the page ----------------------------------------------------------------------------------------------


def test_a_run_records_the_class_of_its_model(project):
    config = read_config(project / "runs/transitions")
    assert config["model"] == "transitions"
    assert config["class"] == "transitions:Transitions"
    assert config["distribution"] is None
    assert config["config"]["window"] == 2
    assert config["defaults"]["window"] == 3
    assert "`transitions:Transitions`" in (project / "runs/transitions/README.md").read_text()


def test_the_example_trains_evaluates_and_recommends(importable, split, tmp_path):
    code = files_of_the_page()["use_transitions.py"]
    names: dict[str, Any] = {}
    exec(code.replace("rd.split.default", "rd.split.leave_one_out").replace('"runs/', f'"{tmp_path}/'), names)
    run, command_run = rd.Recommender.load(names["run"].path), rd.Recommender.load(importable / "runs/transitions")
    users = split.dataset.user_ids.to_list()
    assert run.recommend(users=users).equals(command_run.recommend(users=users))
    # On a ring, the next item follows most often.
    assert run.recommend(histories=[["i4", "i5"]], k=1)["item_id"].to_list() == ["i6"]
    assert (names["run"].path / "test.json").exists()


def test_the_models_of_the_page_keep_the_contracts(importable):
    names: dict[str, Any] = {}
    exec(files_of_the_page()["test_transitions.py"], names)
    names["test_contracts"]()


def test_contracts_need_no_pytest(importable, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    names = runpy.run_path(str(rd.testing.__file__))
    names["check_model"]("convolution:Convolution", {"epochs": 2, "embedding_size": 8})


def test_commands_work_where_the_class_can_be_imported(project, monkeypatch, capsys, forget_modules):
    """The current directory has it, without being on Python's path."""
    monkeypatch.chdir(project)
    code, out, err = run_command(monkeypatch, capsys, "evaluate", "runs/transitions", "data/mine", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["all"]["hr@10"] > 0.5
    code, out, err = run_command(
        monkeypatch, capsys, "recommend", "runs/transitions", "--user", "u1", "-k", 3, "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["recommendations"]) == 3
    trials = ("--trials", 2, "--split", "leave-one-out", "--json")
    code, out, err = run_command(
        monkeypatch, capsys, "tune", "transitions:Transitions", "data/mine", "-o", "studies/transitions", *trials
    )
    assert code == 0, err
    assert "train transitions:Transitions data/mine" in json.loads(out)["next"]
    assert set(json.loads(out)["best_config"]) <= {"decay"}


def test_a_sequence_model_is_exported(importable, split, monkeypatch, tmp_path):
    run = rd.train("convolution:Convolution", split, tmp_path / "run", config={"epochs": 1, "embedding_size": 16})
    assert read_config(run.path)["class"] == "convolution:Convolution"
    facts = export(run.path, tmp_path / "exported", "torch-export")
    assert facts["model"] == "convolution"
    recommender = rd.Recommender.load(run.path)
    assert recommender.similar(["i3"], k=2).height == 2
    with pytest.raises(ConfigError, match=r"transitions cannot be exported: .* vector per item"):
        export(importable / "runs/transitions", tmp_path / "other")
    # len() makes the number of users in the example a constant.
    monkeypatch.setattr(type(recommender.model), "represent", lambda model, items, *_: items.float()[: len(items), :1])
    with pytest.raises(ConfigError, match="convolution cannot be exported: Constraints violated"):
        export(run.path, tmp_path / "other", "torch-export")
    assert not (tmp_path / "other").exists()


def test_without_the_class_runs_are_compared_and_not_loaded(project, split, monkeypatch, capsys, tmp_path):
    with monkeypatch.context() as there:
        there.syspath_prepend(project)
        rd.evaluate(project / "runs/transitions", split.dataset)
    sys.modules.pop("transitions")
    monkeypatch.chdir(tmp_path)
    knn = rd.train("itemknn", split, tmp_path / "itemknn")
    rd.evaluate(knn.path, split.dataset)
    found = rd.compare([project / "runs/transitions", knn.path])
    assert set(found.summary["variant"]) == {"transitions", "itemknn"}
    for load in (read_run, rd.Recommender.load):
        with pytest.raises(RunError, match="needs the class transitions:Transitions") as error:
            load(project / "runs/transitions")
        assert error.value.remedy == "Run from the folder that holds transitions.py, or add it to PYTHONPATH."
    code, _, err = run_command(monkeypatch, capsys, "recommend", project / "runs/transitions", "--user", "u1")
    assert code == 2
    assert "There is no module 'transitions'" in err


# --- installed packages ------------------------------------------------------------------------------------


def install(folder: Path, distribution: str, entry_points: str, modules: dict[str, str]) -> Path:
    """What pip leaves in ``folder``: modules, and the files that describe the distribution."""
    about = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[rediffuse.models]\n{entry_points}\n" if entry_points else "")
    for name, content in modules.items():
        (folder / name).write_text(content, encoding="utf-8")
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in modules))
    return folder


@pytest.fixture
def acme(tmp_path, monkeypatch, forget_modules) -> Path:
    """An installed package whose entry point is the one of the page."""
    entry_point = files_of_the_page()["pyproject.toml"].splitlines()[-1]
    modules = {"transitions.py": files_of_the_page()["transitions.py"]}
    folder = install(tmp_path / "site", "acme-models", entry_point.replace('"', ""), modules)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_models_of_installed_packages_are_found_by_name(acme, split, monkeypatch, capsys, tmp_path):
    assert "transitions" in rd.models.names()
    assert "transitions" not in rd.models.names(installed=False)
    _, out, _ = run_command(monkeypatch, capsys, "models", "--json")
    facts = json.loads(out)["transitions"]
    assert facts["class"] == "transitions:Transitions"
    assert facts["options"]["window"] == {
        "default": 3,
        "description": "Largest distance of two items in a history that counts.",
    }
    run = rd.train("transitions", split, tmp_path / "run")
    config = read_config(run.path)
    assert config["class"] == "transitions:Transitions"
    assert config["distribution"] == {"name": "acme-models", "version": "1.2"}
    assert "from acme-models 1.2" in (run.path / "README.md").read_text()
    assert rd.Recommender.load(run.path).recommend(users=["u1"]).height == 10

    monkeypatch.undo()  # uninstalled
    sys.modules.pop("transitions")
    with pytest.raises(ConfigError, match="There is no model 'transitions'"):
        model_class("transitions")
    with pytest.raises(RunError) as error:
        read_run(run.path)
    assert error.value.remedy == "Run: pip install acme-models==1.2"


def test_the_distribution_is_known_without_an_entry_point(tmp_path, monkeypatch, forget_modules):
    modules = {"acme_models.py": files_of_the_page()["transitions.py"]}
    monkeypatch.syspath_prepend(install(tmp_path, "acme-models", "", modules))
    kind = model_class("acme_models:Transitions")
    assert external.describe(kind) == {
        "model": "transitions",
        "class": "acme_models:Transitions",
        "distribution": {"name": "acme-models", "version": "1.2"},
    }


def test_a_run_of_another_version_says_which_it_needs(acme, split, tmp_path):
    run = rd.train("transitions", split, tmp_path / "run")
    (acme / "transitions.py").write_text(
        files_of_the_page()["transitions.py"].replace("    window: int", "    reach: int")
    )
    sys.modules.pop("transitions")
    sys.path_importer_cache.clear()
    with pytest.raises(RunError, match=r"another version of transitions:Transitions: Unknown option 'window'") as error:
        read_run(run.path)
    assert error.value.remedy == "Use the version that it was trained with: 1.2."


def test_two_packages_with_one_name_are_refused_and_both_named(acme, tmp_path, monkeypatch):
    other = install(tmp_path / "other", "zeta", "transitions = zeta_models:Transitions", {})
    monkeypatch.syspath_prepend(other)
    assert "transitions" in rd.models.names()
    with pytest.raises(ConfigError) as error:
        model_class("transitions")
    assert "acme-models 1.2 (transitions:Transitions) and zeta 1.2 (zeta_models:Transitions)" in str(error.value)
    assert model_class("transitions:Transitions").name == "transitions"


def test_a_built_in_name_wins_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path, "acme-models", "ease = acme_models:Best", {}))
    with pytest.warns(RediffuseWarning, match=r"acme-models 1.2 offers a model 'ease'.*acme_models:Best"):
        assert model_class("ease") is rd.models.EASE


@pytest.mark.parametrize(
    ("entry_point", "content", "found"),
    [
        (
            "broken = acme_models:Best",
            "",
            "acme-models 1.2 offers a model 'broken', but: Module acme_models has no 'Best'",
        ),
        ("broken = acme_models:Best", "1 / 0", "Module acme_models cannot be imported: ZeroDivisionError"),
        ("broken = acme_models:Best", "class Best:\n    name = 'best'", "the `name` of acme_models:Best is 'best'"),
    ],
)
def test_a_broken_entry_point_breaks_nothing_else(
    entry_point, content, found, tmp_path, monkeypatch, capsys, forget_modules
):
    monkeypatch.syspath_prepend(install(tmp_path, "acme-models", entry_point, {"acme_models.py": content}))
    with pytest.raises(ConfigError, match=re.escape(found)):
        model_class("broken")
    code, out, err = run_command(monkeypatch, capsys, "models", "--json")
    assert code == 0
    assert found in err
    assert json.loads(out).keys() >= {"sasrec", "ease"}


# --- wrong models ------------------------------------------------------------------------------------------


class Counted(Model):
    """The smallest model."""

    name = "counted"
    trained_by_gradient = False

    def score_known(self, histories, users, sampling):
        return self.popularity.repeat(len(histories), 1)


class NoName(Counted):
    pass


class BadName(Counted):
    name = "my model"


class NoScores(Model):
    name = "no-scores"
    trained_by_gradient = False


class NoLoss(Model):
    name = "no-loss"

    def score_known(self, histories, users, sampling):
        raise NotImplementedError


class NoNetwork(SequenceModel):
    name = "no-network"


class BadConfig(Counted):
    name = "bad-config"
    Config: ClassVar[Any] = dict


class RequiredConfig(ModelConfig):
    width: int = Field(ge=1)


class Required(Counted):
    name = "required"
    Config = RequiredConfig


class SASRec(rd.models.SASRec):
    name = "sasrec"


HERE = __name__


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (NoName, "NoName has no `name` of its own"),
        (BadName, "The `name` of"),
        (NoScores, "NoScores does not implement score_known"),
        (NoLoss, "NoLoss does not implement batches, loss"),
        (NoNetwork, "NoNetwork does not implement encode, represent"),
        (Model, "does not implement batches, loss, score_known"),
        (BadConfig, "The `Config` of"),
        (Required, "width of"),
        (SASRec, "has the name of a built-in model, 'sasrec'"),
        (dict, "builtins:dict is not a model"),
        (torch.nn.Linear, "Linear is not a model"),
        (3, "The model is of type int"),
        ("no_such_module:Model", "There is no module 'no_such_module'"),
        ("json.no_such_module:Model", "There is no module 'json.no_such_module'"),
        ("rediffuse.models.baselines.ease:EASR", "Did you mean 'EASE'"),
        ("my_model.py:Model", "Give the module, not the file: my_model:Model"),
        ("my_model:", "Write my_package.module:MyModel"),
        ("my_package.module.MyModel", "write a colon: my_package.module:MyModel"),
        ("difurec", "Did you mean 'diffurec'"),
    ],
)
def test_what_is_wrong_with_a_model_is_said_before_anything_is_written(model, found, split, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(found)):
        rd.train(model, split, tmp_path / "run")
    with pytest.raises(ConfigError, match=re.escape(found)):
        rd.tune(model, split, tmp_path / "study")
    assert not list(tmp_path.iterdir())


def test_an_instance_is_not_a_class(split, tmp_path):
    with pytest.raises(ConfigError, match="The model is an instance of Counted"):
        rd.train(Counted(ModelConfig.build(), 3), split, tmp_path / "run")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("\nraise ValueError('wrong')", "acme_models.py, line 2"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_fails_is_named_with_the_reason(content, found, tmp_path, monkeypatch, forget_modules):
    (tmp_path / "acme_models.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="Module acme_models cannot be imported") as error:
        model_class("acme_models:Best")
    assert found in str(error.value)


def test_a_class_of_a_function_works_in_this_process_only(split, tmp_path):
    class Local(Counted):
        name = "local"

    with pytest.warns(RediffuseWarning, match="defined in a script, a notebook or a function"):
        run = rd.train(Local, split, tmp_path / "run")
    assert isinstance(read_run(run.path).model, Local)
    del Local
    gc.collect()
    with pytest.raises(RunError, match="was defined in a function") as error:
        read_run(run.path)
    assert error.value.remedy == "Move it to the top level of a module, and train again."


def test_a_class_of_a_script_works_in_that_script_only(split, tmp_path, monkeypatch):
    script = type("Script", (Counted,), {"name": "script", "__module__": "__main__"})
    with monkeypatch.context() as there:
        there.setattr(sys.modules["__main__"], "Script", script, raising=False)
        with pytest.warns(RediffuseWarning, match="__main__:Script is defined in a script"):
            run = rd.train(script, split, tmp_path / "run")
        assert isinstance(read_run(run.path).model, script)
    with pytest.raises(RunError, match="needs the class __main__:Script") as error:
        read_run(run.path)
    assert "define it there again" in str(error.value)


def test_a_training_goes_on_with_the_same_class_only(split, tmp_path):
    class Local(Counted):
        name = "counted"

    rd.train(Counted, split, tmp_path / "run")
    rd.train(f"{HERE}:Counted", split, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="another class"), pytest.warns(RediffuseWarning, match="function"):
        rd.train(Local, split, tmp_path / "run", resume=True)


# --- the contracts find what breaks them -------------------------------------------------------------------


class Centred(Counted):
    """Its scores depend on the other users of the batch."""

    name = "centred"

    def score_known(self, histories, users, sampling):
        first = torch.from_numpy(histories.items[histories.offsets[:-1]]).long()
        distance = (torch.arange(self.num_items) - first[:, None]).abs().float()
        return (distance - distance.mean(dim=0)).abs()


class Infinite(Counted):
    name = "infinite"

    def score_known(self, histories, users, sampling):
        return super().score_known(histories, users, sampling) / (200 - torch.from_numpy(histories.lengths)[:, None])


class Unseeded(Counted):
    name = "unseeded"
    draws = 0

    def fit(self, data):
        super().fit(data)
        Unseeded.draws += 1
        self.popularity += Unseeded.draws * torch.arange(self.num_items)


class Forgetful(Counted):
    """What it learns is in no buffer, so it is not saved."""

    name = "forgetful"

    def fit(self, data):
        self.seen = data.popularity

    def score_known(self, histories, users, sampling):
        return torch.from_numpy(self.seen).float().repeat(len(histories), 1)


class Otherwise(Counted):
    """Its vectors rank in another way than its scores."""

    name = "otherwise"

    def index_vectors(self):
        return self.popularity[:, None]

    def query_vectors(self, histories, users, sampling):
        return -torch.ones(len(histories), 1)


class Hesitant(Counted):
    name = "hesitant"
    stochastic = True


class OddConfig(ModelConfig):
    presets: ClassVar = {"paper": {"depht": 3}}
    search: ClassVar = {"depth": (0, 1)}
    depth: int = Field(1, ge=1)


class Odd(Counted):
    name = "odd"
    Config = OddConfig


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Centred, "batch size does not change lists: batches of 7 users: the lists differ"),
        (Infinite, "scores are finite for any history: scores of a history (one item 200 times) are not finite"),
        (Unseeded, "the same seed gives the same run: the weights differ"),
        (Forgetful, "a loaded run gives the same lists: AttributeError"),
        (Otherwise, "vectors rank as the model does: scores_by_vectors are not the scores of the model"),
        (Hesitant, "another sampling seed gives other scores"),
        (Odd, "presets and search are valid: preset 'paper' is refused: Unknown option 'depht'"),
    ],
)
def test_a_broken_contract_is_named(model, found, split):
    with pytest.raises(AssertionError, match=re.escape(found)) as error:
        check_model(model, data=split)
    assert f"{HERE}:{model.__name__} breaks" in str(error.value)


def test_the_smallest_model_keeps_every_contract(split):
    check_model(Counted)
    check_model(Counted, {"metric": "hr@10"}, split.dataset)
    with pytest.raises(ConfigError, match="at least 8 items"):
        check_model(Counted, data=synthetic_interactions(items=6))


def test_synthetic_interactions_are_as_asked():
    data = synthetic_interactions(users=20, items=10, length=5, text_ids=False, friends=2)
    assert (data.num_users, data.num_items) == (21, 10)
    assert data.item_ids.dtype == pl.Int64
    assert 4 <= data.interactions.lengths[:20].min() <= data.interactions.lengths.max() <= 5


# --- the classes of the package ----------------------------------------------------------------------------


def test_every_built_in_class_is_exported():
    for name in rd.models.names(installed=False):
        kind = model_class(name)
        assert kind.name == name
        assert kind.__name__ in rd.models.__all__
        assert getattr(rd.models, kind.__name__) is kind
        assert model_class(kind) is model_class(external.class_path(kind)) is external.checked(kind) is kind
    for name in rd.models.__all__:
        assert getattr(rd.models, name) is not None
    assert {"Model", "SequenceModel", "FactorModel", "ModelConfig"} <= set(dir(rd.models))
    with pytest.raises(AttributeError, match="no attribute 'SASrec'"):
        rd.models.SASrec  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_class_trains_as_its_name_does(split, tmp_path):
    by_class, by_name = (rd.train(kind, split, tmp_path / str(n)) for n, kind in enumerate((rd.models.EASE, "ease")))
    assert by_class.config["model"] == "ease"
    assert by_class.config["class"] == "rediffuse.models.baselines.ease:EASE"
    assert by_class.config["distribution"]["name"] == "rediffuse"
    assert by_class.validation == by_name.validation
