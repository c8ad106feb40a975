//! What no run can use of a recipe's section, said before any work. Each message names the key, what was expected and what was found.

use softshard_model::{Precision, Residency};

use crate::config::{Init, OptimizerKind, TrainConfig};

/// Passes over a dataset of a mixture in one epoch: more are a slip, and would fill the memory.
const MOST_PASSES: f64 = 1000.0;

impl TrainConfig {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence naming the key below `section`, what was expected and what was found.
    pub fn check(&self, section: &str) -> Result<(), String> {
        self.check_numbers(section)?;
        self.loss.check(section)?;
        self.check_data(section)?;
        self.load_options().check(section)?;
        if self.trains_adapter() { self.check_adapter(section) } else { self.check_whole_model(section) }
    }

    /// Each by itself.
    fn check_numbers(&self, section: &str) -> Result<(), String> {
        let at_least_zero = [
            ("learning_rate", self.learning_rate),
            ("final_learning_rate", self.final_learning_rate),
            ("weight_decay", self.weight_decay),
        ];
        if let Some((key, found)) = at_least_zero.into_iter().find(|(_, it)| !(it.is_finite() && *it >= 0.0))
        {
            return Err(format!("`{section}.{key}`: expected a number of at least 0, found {found}"));
        }
        if !(self.clip_norm.is_finite() && self.clip_norm > 0.0) {
            return Err(format!(
                "`{section}.clip_norm`: expected a number above 0, found {}",
                self.clip_norm
            ));
        }
        if let Some(decay) = self.ema_decay.filter(|decay| !(0.0..1.0).contains(decay)) {
            return Err(format!(
                "`{section}.ema_decay`: expected a number of at least 0 and below 1, found {decay}"
            ));
        }
        let counts = [
            ("epochs", self.epochs == 0),
            ("max_tokens_per_batch", self.max_tokens_per_batch == 0),
            ("accumulate_batches", self.accumulate_batches == 0),
            ("rows_per_chunk", self.rows_per_chunk == 0),
            ("keep_checkpoints", self.keep_checkpoints == 0),
            (
                "evaluation.every_steps",
                self.evaluation.as_ref().is_some_and(|evaluation| evaluation.every_steps == 0),
            ),
        ];
        match counts.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((key, _)) => Err(format!("`{section}.{key}`: expected at least 1, found 0")),
            None => Ok(()),
        }
    }

    /// What is read how often.
    fn check_data(&self, section: &str) -> Result<(), String> {
        let fits = |weight: f64| weight > 0.0 && weight <= MOST_PASSES;
        match self.mixture.iter().find(|mixed| !fits(mixed.weight)) {
            Some(mixed) => Err(format!(
                "`{section}.mixture`: expected a weight above 0 and at most {MOST_PASSES} for `{}`, found {}",
                mixed.labels.display(),
                mixed.weight
            )),
            None => Ok(()),
        }
    }

    /// An adapter over frozen weights.
    fn check_adapter(&self, section: &str) -> Result<(), String> {
        if self.lora.is_some() && self.adapter.is_some() {
            return Err(format!(
                "`{section}.lora`: expected none beside `adapter`, which has its own rank, scale and targets\n\
                 hint: remove one of them"
            ));
        }
        if self.optimizer == OptimizerKind::Muon {
            return Err(format!(
                "`{section}.optimizer`: expected \"adamw\" where an adapter is trained, found \"muon\"\n\
                 hint: remove `lora` or `adapter` to train all weights"
            ));
        }
        if self.init == Init::Random {
            return Err(format!(
                "`{section}.{}`: adapters over random weights learn nothing\nhint: remove `init = \"random\"` or this key",
                if self.adapter.is_some() { "adapter" } else { "lora" }
            ));
        }
        let lora = self.lora.as_ref().map_or(Ok(()), softshard_model::LoraConfig::check);
        lora.map_err(|error| format!("`{section}`: {error}"))
    }

    /// All weights, which are f32 and in memory.
    fn check_whole_model(&self, section: &str) -> Result<(), String> {
        let only_adapters = |key: &str, expected: &str| {
            Err(format!(
                "`{section}.{key}`: expected {expected} where all weights are trained\nhint: add a lora section"
            ))
        };
        if self.quantise.is_some() {
            return only_adapters("quantise", "nothing");
        }
        if self.precision != Precision::F32 {
            return only_adapters("precision", "\"f32\"");
        }
        if self.residency != Residency::Resident {
            return only_adapters("residency", "\"resident\"");
        }
        Ok(())
    }
}
