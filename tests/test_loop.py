"""The training loop: it learns, it goes on after a kill as if nothing had been, processes share the work."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("tensorboard", reason="needs the [train] extra")

from streampose.errors import ModelError, OutputError, UsageError
from streampose.train import checkpoint as checkpoints
from streampose.train.loop import InterruptedTrainingError, TrainingError, fit
from streampose.train.settings import LoopSettings

sys.path.insert(0, str(Path(__file__).parent))
from training_task import SETTINGS, StripeTask

PROGRAM = Path(__file__).parent / "training_task.py"


def settings(**changes: Any) -> LoopSettings:
    return LoopSettings(**(SETTINGS | changes))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(folder: Path, group: str, name: str) -> dict[int, float]:
    return {int(r["step"]): float(r["value"]) for r in rows(folder) if (r["group"], r["name"]) == (group, name)}


def train(*arguments: str, processes: int = 1) -> None:
    """Run the program, under torchrun for several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, str(PROGRAM), *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_learns_logs_and_draws(tmp_path: Path) -> None:
    fit(StripeTask(), settings(), tmp_path)
    right = curve(tmp_path, "val", "right")
    assert list(right) == [20, 40, 60]
    assert right[60] > 0.9
    losses = {name: curve(tmp_path, "loss", name) for name in ("column", "auxiliary", "watched", "total")}
    assert losses["column"][60] < 0.5 * losses["column"][10]
    for step, total in losses["total"].items():
        assert total == pytest.approx(losses["column"][step] + 0.3 * losses["auxiliary"][step], rel=1e-4)
        assert losses["watched"][step] == pytest.approx(2 * losses["column"][step], rel=1e-4)
    assert curve(tmp_path, "speed", "samples_per_s")[60] > 0
    curves = cv2.imread(str(tmp_path / "curves.png"))
    assert curves is not None
    assert curves.std() > 5
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir())[-1] == "step-0000060.jpg"


def test_tensorboard_has_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(StripeTask(), settings(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("loss/column")}
    assert found == pytest.approx(curve(tmp_path, "loss", "column"), rel=1e-4)
    assert [image.step for image in events.Images("predictions")] == [20, 40, 60]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, precision: str) -> None:
    """Dropout draws from torch's generator and Adam has moments, so that nothing of the state may be missing."""
    chosen = settings(precision=precision, deterministic=True)
    whole = fit(StripeTask(), chosen, tmp_path / "whole").state_dict()
    with pytest.raises(TrainingError):
        fit(StripeTask(poison_at=37), chosen, tmp_path / "broken")
    torch.manual_seed(99)
    resumed = fit(StripeTask(), chosen, tmp_path / "broken", resume=True).state_dict()
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [int(row["step"]) for row in rows(tmp_path / "broken")]
    assert steps == sorted(steps)
    assert [{**row} for row in rows(tmp_path / "broken") if row["group"] == "loss"] == [
        row for row in rows(tmp_path / "whole") if row["group"] == "loss"
    ]


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL at whatever moment it comes, several times, with a worker process that makes the samples.

    It comes before the run's end also where this process is slow: the run waits for it.
    """
    arguments = ("steps=120", "checkpoint_every=1", "validate_every=60", "workers=1")
    train(str(tmp_path / "whole"), *arguments)
    killed, out, process_lives = 0, tmp_path / "killed", threading.Event()
    for least, hold_at in ((20, 40), (60, 70)):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(out), *arguments, "resume=true", f"hold_at={hold_at}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while steps_done(out) < least and process.poll() is None and time.monotonic() < deadline:
            process_lives.wait(0.02)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    assert 60 <= steps_done(out) < 120
    train(str(out), *arguments, "resume=true")
    whole, resumed = (torch.load(folder / "final.pt", weights_only=True) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def steps_done(out: Path) -> int:
    try:
        return int(torch.load(out / "checkpoint.pt", weights_only=True)["step"])
    except FileNotFoundError:
        return 0


def test_a_signal_stops_after_a_checkpoint(tmp_path: Path) -> None:
    class Interrupted(StripeTask):
        def losses(self, batch: Any) -> Any:
            if self.steps == 24:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedTrainingError, match=r"stopped at step 2[56] of 60"):
        fit(Interrupted(), settings(), tmp_path)
    assert steps_done(tmp_path) in (25, 26)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("final", [False, True])
def test_a_signal_while_the_last_step_is_validated_stops_what_comes_next(tmp_path: Path, final: bool) -> None:
    class Interrupted(StripeTask):
        def validate(self, model: Any) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().validate(model)

    chosen = settings(steps=20, validate_every=20)
    if final:
        fit(Interrupted(), chosen, tmp_path)
    else:
        with pytest.raises(InterruptedTrainingError, match="stopped at step 20 of 20"):
            fit(Interrupted(), chosen, tmp_path, final=False)
    assert steps_done(tmp_path) == 20


def test_a_second_signal_ends_what_hangs(tmp_path: Path) -> None:
    class Hanging(StripeTask):
        def losses(self, batch: Any) -> Any:
            if self.steps == 12:
                signal.raise_signal(signal.SIGINT)  # asks for a stop after this step, which never comes
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the second signal did nothing")
            return super().losses(batch)

    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Hanging(), settings(), tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ours)
    assert steps_done(tmp_path) == 10


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_summed_batch(tmp_path: Path) -> None:
    """Weighted losses, BatchNorm statistics, clipping, momenta: as the whole batch has them, to float32's rounding."""
    arguments = ("dropout=0", "steps=30", "grad_clip=0.5", "log_every=1", "lr=0.005")
    train(str(tmp_path / "one"), *arguments)
    train(str(tmp_path / "two"), *arguments, processes=2)
    for name in ("column", "auxiliary", "total"):
        one, two = (curve(tmp_path / folder, "loss", name) for folder in ("one", "two"))
        assert list(one) == list(range(1, 31))
        assert two == pytest.approx(one, rel=2e-4)
    assert curve(tmp_path / "two", "val", "right") == pytest.approx(curve(tmp_path / "one", "val", "right"), abs=0.02)


@pytest.mark.slow
def test_two_processes_resume_where_they_were_stopped(tmp_path: Path) -> None:
    train(str(tmp_path / "cut"), "steps=10", 'schedule="step"', "milestones=[1000]", processes=2)
    train(str(tmp_path / "cut"), "steps=20", 'schedule="step"', "milestones=[1000]", "resume=true", processes=2)
    train(str(tmp_path / "straight"), "steps=20", 'schedule="step"', "milestones=[1000]", processes=2)
    straight, cut = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("straight", "cut"))
    assert all(torch.equal(straight[name], cut[name]) for name in straight)


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    """Without BatchNorm, whose statistics are those of a micro-batch."""

    def run(name: str, accumulate: int) -> dict[int, float]:
        task = StripeTask(dropout=0)
        task.model[1] = torch.nn.Identity()  # type: ignore[assignment]
        fit(task, settings(accumulate=accumulate, log_every=1, steps=20), tmp_path / name)
        return curve(tmp_path / name, "loss", "total")

    assert run("four", 4) == pytest.approx(run("one", 1), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns_with_float32_weights(tmp_path: Path, precision: str) -> None:
    model = fit(StripeTask(), settings(precision=precision), tmp_path)
    assert curve(tmp_path, "val", "right")[60] > 0.9
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"the loss \(column, total\) is not finite at step 14; lower lr, then --resume from .*checkpoint",
    ):
        fit(StripeTask(poison_at=15), settings(), tmp_path)
    assert steps_done(tmp_path) == 10


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(tmp_path: Path, grad_clip: float) -> None:
    """The loss itself is finite: the root of zero has no slope."""

    class Steep(StripeTask):
        def losses(self, batch: Any) -> Any:
            terms = super().losses(batch)
            if self.steps == 20:
                terms["column"] = terms["column"] + (0 * self.model[0].weight).abs().sum().sqrt()  # type: ignore[union-attr,operator]
            return terms

    with pytest.raises(TrainingError, match=r"a gradient is not finite at step 19; lower lr, then --resume from"):
        fit(Steep(), settings(grad_clip=grad_clip), tmp_path)
    assert steps_done(tmp_path) == 10
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in saved["ema"].values())


def test_a_full_disk_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(StripeTask(), settings(steps=20), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; the previous checkpoint is untouched"):
        fit(StripeTask(), settings(), tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_torch_writes_is_an_output_error(tmp_path: Path) -> None:
    fit(StripeTask(), settings(steps=20), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the previous checkpoint is untouched"):
        fit(StripeTask(), settings(), tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(StripeTask(), settings(), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    task = StripeTask()
    task.network = {"backbone": "dots"}
    with pytest.raises(ModelError, match="backbone 'stripes' \\(here 'dots'\\)"):
        fit(task, settings(), tmp_path, resume=True)
    task = StripeTask()
    task.auxiliary = torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(ModelError, match="another network"):
        fit(task, settings(), tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(ModelError, match="damaged"):
        fit(StripeTask(), settings(), tmp_path, resume=True)


def test_epochs_and_milestones_become_steps() -> None:
    chosen = settings(steps=0, epochs=3, schedule="step", milestones=(1, 2), validate_every=0, warmup_steps=4)
    plan = chosen.plan(85)
    assert (plan.steps, plan.validate_every, plan.milestones) == (30, 10, (10, 20))
    shares = [chosen.lr_share(step, plan) for step in (0, 3, 4, 9, 10, 19, 20, 29)]
    assert shares == pytest.approx([0.25, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = settings(warmup_steps=0, final_lr_share=0.1)
    shares = [cosine.lr_share(step, cosine.plan(None)) for step in (0, 30, 60)]
    assert shares == pytest.approx([1, 0.55, 0.1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "one of steps and epochs"),
        ({"epochs": 2}, "one of steps and epochs"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"milestones": (3,)}, "milestones"),
        ({"schedule": "step"}, "milestones"),
        ({"schedule": "step", "milestones": (3, 2)}, "milestones rise"),
        ({"validate_every": 0}, "needs epochs"),
        ({"lr": 0.0}, "lr is above 0"),
        ({"workers": -1}, "not negative"),
    ],
)
def test_contradicting_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**changes)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be shared by 1 processes with accumulate = 3; take a multiple of 3"):
        fit(StripeTask(), settings(accumulate=3), tmp_path)
    with pytest.raises(UsageError, match="need a data set with an end"):
        settings(steps=0, epochs=2).plan(None)
    with pytest.raises(UsageError, match="fewer than batch_size"):
        settings(steps=0, epochs=2).plan(5)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch finds no GPU"):
            fit(StripeTask(), settings(device="cuda"), tmp_path)
