"""Hyper-parameter search on validation data.

Optuna proposes options and stops hopeless trials; the one training loop trains. What is added here makes a study fair
and hard to lose: the default is tried first, time is a budget over all sessions, a killed study goes on as if it had
been left alone, and no trial can reach the test subset.

```
study/
  study.json            what the study is, what it spent, where it stands
  study.journal         Optuna's log of all trials, JSON lines
  best.yaml             options for `rediffuse train --config`
  trials.parquet        one row per trial
  trials/0007/          metrics.jsonl of a trial
```
"""

from rediffuse.tuning.study import Study
from rediffuse.tuning.tune import tune

__all__ = ["Study", "tune"]
