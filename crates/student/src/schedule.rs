//! The learning rate of each step.

use crate::config::{Schedule, TrainConfig};

/// Linear warm-up to `peak`, then one of the [`Schedule`]s down to `last` at the final step.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    /// What happens after the warm-up.
    pub schedule: Schedule,
    /// Learning rate after the warm-up.
    pub peak: f64,
    /// Learning rate at the end, but of [`Schedule::Constant`].
    pub last: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the decay of [`Schedule::WarmupStableDecay`]; 0: a tenth of the run.
    pub decay_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl LearningRate {
    /// That of a run of so many steps.
    pub fn of(config: &TrainConfig, total_steps: u64) -> Self {
        LearningRate {
            schedule: config.schedule,
            peak: config.learning_rate,
            last: config.final_learning_rate,
            warmup_steps: config.warmup_steps,
            decay_steps: config.decay_steps,
            total_steps,
        }
    }

    /// The learning rate of step `step`, counted from 0.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let step = step - self.warmup_steps;
        let part = |step: u64, length: u64| step.min(length) as f64 / length as f64;
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Linear => self.peak + (self.last - self.peak) * part(step, length),
            Schedule::Cosine => {
                let height = 0.5 * (1.0 + (std::f64::consts::PI * part(step, length)).cos());
                self.last + (self.peak - self.last) * height
            }
            Schedule::WarmupStableDecay => {
                let decay =
                    if self.decay_steps > 0 { self.decay_steps } else { (self.total_steps / 10).max(1) };
                let decay = decay.min(length);
                let step = step.saturating_sub(length - decay);
                self.peak + (self.last - self.peak) * part(step, decay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_rates(schedule: Schedule, expected: &[(u64, f64)]) {
        let rate =
            LearningRate { schedule, peak: 1.0, last: 0.1, warmup_steps: 2, decay_steps: 4, total_steps: 12 };
        for &(step, expected) in expected {
            assert!((rate.at(step) - expected).abs() < 1e-12, "{schedule:?} {step}: {}", rate.at(step));
        }
    }

    #[test]
    fn rates_rise_then_go_to_their_last_value() {
        assert_rates(Schedule::Cosine, &[(0, 0.5), (1, 1.0), (2, 1.0), (7, 0.55), (12, 0.1), (20, 0.1)]);
        assert_rates(Schedule::Linear, &[(0, 0.5), (2, 1.0), (7, 0.55), (12, 0.1)]);
        assert_rates(Schedule::Constant, &[(0, 0.5), (2, 1.0), (12, 1.0)]);
        assert_rates(Schedule::WarmupStableDecay, &[(0, 0.5), (2, 1.0), (8, 1.0), (10, 0.55), (12, 0.1)]);
    }

    #[test]
    fn a_decay_of_nothing_said_is_a_tenth_of_the_run() {
        let schedule = Schedule::WarmupStableDecay;
        let rate = LearningRate {
            schedule,
            peak: 1.0,
            last: 0.0,
            warmup_steps: 0,
            decay_steps: 0,
            total_steps: 100,
        };
        assert_eq!([0, 90, 100].map(|step| rate.at(step)), [1.0, 1.0, 0.0]);
        assert!((rate.at(95) - 0.5).abs() < 1e-12);
    }
}
