"""Names that leave the program: for Kubernetes, Slurm, shells, file systems and web pages."""

import html.parser
import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from diffjax.cli import report_page
from diffjax.cli.tables import format_html_table
from diffjax.launch import jobs, kubernetes, slurm
from diffjax.launch.manifest import make_folder_name
from diffjax.types import ConfigError
from experiments.reproductions import pieces

HOSTILE = (
    *("", "-", "---", "é", "٣", "İ", "a" * 200, "000-a=-" + "b" * 80, "A_B.C", "x" * 45 + "-y"),
    *("$(touch x)", "`id`", "a b", "a;b", "a\nb", "../..", "<script>alert(1)</script>", "\x00"),
    *("'", '"', "&amp;", "日本語", "🙂", "-rf", "a/b", "%j", "#", "*"),
)
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
OPTIONS = {"image": "me/diffjax:1", "claim": "disk", "workdir": Path("/runs"), "resources": {}}


@pytest.mark.parametrize("name", HOSTILE)
def test_kubernetes_names_are_labels_of_rfc_1123(name):
    job = jobs.Job(name, ("python", "-m", "x"), Path("/runs/a"))
    found = kubernetes.make_job_name(job)
    # A pod's name is the job's and up to 10 signs more.
    assert LABEL.fullmatch(found) and len(found) <= 53
    assert found != kubernetes.make_job_name(job._replace(folder=Path("/runs/b")))


def test_kubernetes_expands_nothing_in_arguments():
    command = ("python", "-m", "experiments.train", "--config.note=$(HOME) $$ $x")
    text = kubernetes.format_manifest([jobs.Job("a", command, Path("/runs/a"))], **OPTIONS)
    (container,) = json.loads(text)["items"][0]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == "--config.note=$$(HOME) $$$$ $$x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(claim="My_Claim"), "claim='My_Claim' is not a name"),
        (dict(claim="a\n"), "^claim="),
        (dict(claim=""), "^claim="),
        (dict(claim="a..b"), "^claim="),
        (dict(claim="ä"), "^claim="),
        (dict(image=""), "image='' must name a container"),
        (dict(image="a b"), "^image="),
        (dict(image="a\n"), "^image="),
        (dict(workdir=Path("/a:b")), "workdir='/a:b': pods cannot mount"),
        (dict(resources={"nvidia.com/gpu": ""}), "resources=nvidia.com/gpu=: must be NAME=AMOUNT"),
        (dict(resources={"cpu": "many"}), "^resources=cpu=many"),
        (dict(resources={"cpu": "1\n"}), "^resources"),
        (dict(resources={"a/b/c": "1"}), "^resources=a/b/c=1"),
        (dict(resources={"": "1"}), "^resources"),
        (dict(workdir=Path("runs")), "workdir=runs is where .* an absolute path is needed"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(change, message):
    with pytest.raises(ConfigError, match=message):
        kubernetes.format_manifest([], **{**OPTIONS, **change})


@pytest.mark.parametrize(
    "resources",
    [{"cpu": "500m", "memory": "1.5Gi"}, {"google.com/tpu": "4"}, {"hugepages-2Mi": "8Mi"}],
)
def test_what_kubernetes_takes_is_taken(resources):
    kubernetes.format_manifest([], **{**OPTIONS, "claim": "my-claim.a1", "resources": resources})


@pytest.mark.parametrize("value", HOSTILE)
def test_folders_of_runs_have_names_for_any_system(value):
    name = make_folder_name(7, {"data.dir": value, "optim.lr": 1e-3})
    assert re.fullmatch(r"007-[-=_.A-Za-z0-9]{0,76}", name)


def test_line_breaks_reach_no_slurm_script(tmp_path, monkeypatch):
    # submitit quotes, but a quoted line break still begins a line of the script.
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    for folder, options in (
        (tmp_path, {"slurm_partition": "gpu\nrm -r x"}),
        (tmp_path, {"slurm_comment\nrm": 1}),
        (tmp_path / "a\nb", {}),
    ):
        with pytest.raises(ConfigError, match="has line breaks or control signs"):
            slurm.SlurmExecutor(folder, options)


@pytest.mark.parametrize("value", HOSTILE)
def test_slurm_scripts_quote(tmp_path, value):
    scripts = pytest.importorskip("submitit.slurm.slurm")
    if not value.isprintable():
        return  # see above
    text = scripts._make_sbatch_string(
        command="true", folder=tmp_path / "x y", job_name=value, comment=value
    )
    flags = [shlex.split(line[8:]) for line in text.splitlines() if line.startswith("#SBATCH")]
    assert [f"--job-name={value}"] in flags and [f"--comment={value}"] in flags


@pytest.mark.parametrize("value", HOSTILE)
def test_commands_are_shown_as_a_shell_takes_them(value):
    piece = pieces.Piece("a", (("train", "--workdir={runs}/a"),), {}, 1.0)
    runs = Path("/runs") / value.replace("\x00", "")
    (shown,) = pieces.format_commands(piece, runs, Path("/results"))
    assert shlex.split(shown) == ["python", "-m", "experiments.train", f"--workdir={runs}/a"]


class _Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("value", ["<script>x</script>", '"><img onerror=x>', "</table>&<b>"])
def test_pages_escape_names_and_values(value):
    rows = [{"run": value, value: value, "loss": 1.0}, {"run": "a", value: 2.0, "loss": 2.0}]
    text = format_html_table(rows, rows[0])
    text += report_page.format_pairs({value: value}) + report_page.format_image(b"", value)
    found = _Tags(text)
    allowed = {"table", "tr", "th", "td", "b", "thead", "tbody", "figure", "img", "figcaption"}
    assert found.tags <= allowed and "onerror" not in found.attributes
    assert text.count("</table>") == 2
