//! Held-out data during a run: which step was the best, and when to end.

use std::time::Instant;

use anyhow::{Result, bail};

use super::{TRAIN_GENTLER, Trainer};
use crate::{checkpoint::Best, config::Metric, pass::lap};

impl Trainer<'_> {
    /// Looks at held-out data; says whether it was never better, or nothing if it was told to stop.
    pub(super) fn evaluate(&mut self) -> Result<Option<bool>> {
        let (Some(config), Some(held_out)) = (&self.inputs.config.evaluation, &self.held_out) else {
            return Ok(Some(false));
        };
        let (began, step) = (Instant::now(), self.progress.step);
        let Some(found) = held_out.look(&self.exported(), step, self.inputs.stop)? else { return Ok(None) };
        if !found.nll.is_finite() {
            let (stage, nll) = (self.inputs.stage, found.nll);
            let best = self
                .progress
                .best
                .map(|best| format!("the checkpoint of the best step so far, {}, is kept; ", best.step));
            bail!(
                "{stage} step {step}: expected a finite NLL on held-out data, found {nll}\nhint: {}{TRAIN_GENTLER}",
                best.unwrap_or_default()
            );
        }
        self.curve.evaluation(&found)?;
        // What a checkpoint of this step has is no longer all.
        (self.progress.evaluation_due, self.last_saved) = (false, None);
        let value = match config.best_by {
            Metric::Nll => Some(found.nll),
            Metric::Kl => found.kl,
            Metric::Ece => Some(found.ece),
        };
        let best = self.progress.best;
        // A value that is not finite is never the best one.
        let better = |value: &f64| value.is_finite() && best.is_none_or(|best| *value < best.value);
        let improved = value.filter(better);
        match improved {
            Some(value) => {
                self.progress.best = Some(Best { step, value });
                self.progress.evaluations_since_best = 0;
            }
            None => self.progress.evaluations_since_best += 1,
        }
        lap(&mut self.seconds.evaluate, began);
        Ok(Some(improved.is_some()))
    }

    /// Whether held-out data has not become better for as long as the recipe's patience.
    pub(crate) fn out_of_patience(&self) -> bool {
        let patience = self.inputs.config.evaluation.as_ref().map_or(0, |evaluation| evaluation.patience);
        patience > 0 && self.progress.evaluations_since_best >= patience
    }
}
