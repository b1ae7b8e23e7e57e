"""The line that says where a training stands."""

from run_state import progress
from run_state.checkpoints import RunState
from user_input import UserInput


def test_what_is_left_is_computed_from_the_steps_and_the_tests() -> None:
    args = UserInput(epochs=10)
    state = RunState({}, [{"test_seconds": 30.0}] * 3)
    state.progress.steps = 100
    # 20 steps in 10 s: 2 steps/s, 400 steps an epoch, 280 to go; then a test, and six epochs of 200 s and a test
    line = progress._line(args, 400, state, done=20, images=2560, seconds=10.0, loss=1.5)
    assert line == (
        "epoch 4 of 10, step 120 of 400: loss 1.5000, 256 images/s, 2 min left of the epoch, 26 min of the run"
    )
    assert [progress.duration(seconds) for seconds in (0.4, 59.0, 3600.0, 7500.0)] == [
        "0 s",
        "59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
