"""Hyper-parameter search on validation data.

Optuna proposes options and prunes trials; the training loop trains them. This package makes a study fair and safe: the
default is tried first, the time limit covers all sessions, a killed study continues as if it had not been interrupted,
and no trial can reach the test subset.

```
study/
  study.json            its settings, the time spent, its state
  study.journal         Optuna's log of all trials, as JSON lines
  best.yaml             options for `rediffuse train --config`
  trials.parquet        one row per trial
  trials/0007/          metrics.jsonl of a trial
```
"""

from rediffuse.tuning.study import Study
from rediffuse.tuning.tune import tune

__all__ = ["Study", "tune"]
