//! What a training says on its dashboard line: losses, the learning rate, memory, and the last look at held-out data.

use std::fmt::{self, Display};

use crate::numbers::{float, memory, nats};

/// Scalars of a progress event that only trainings say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Learning {
    loss: Option<f64>,
    cross_entropy: Option<f64>,
    divergence: Option<f64>,
    divergence_name: String,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    memory_bytes: Option<u64>,
    valid_step: Option<u64>,
    valid_nll: Option<f64>,
    valid_kl: Option<f64>,
}

impl Learning {
    /// Takes the field if it is one of training.
    pub(crate) fn record_f64(&mut self, name: &str, value: f64) {
        let place = match name {
            "loss" => &mut self.loss,
            "cross_entropy" => &mut self.cross_entropy,
            "divergence" => &mut self.divergence,
            "alpha" => &mut self.alpha,
            "learning_rate" => &mut self.learning_rate,
            "valid_nll" => &mut self.valid_nll,
            "valid_kl" => &mut self.valid_kl,
            _ => return,
        };
        *place = Some(value);
    }

    /// The same, of whole numbers.
    pub(crate) fn record_u64(&mut self, name: &str, value: u64) {
        match name {
            "memory_bytes" => self.memory_bytes = Some(value),
            "valid_step" => self.valid_step = Some(value),
            _ => {}
        }
    }

    /// The same, of names.
    pub(crate) fn record_str(&mut self, name: &str, value: &str) {
        if name == "divergence_name" {
            value.clone_into(&mut self.divergence_name);
        }
    }

    /// Whether a training says it.
    pub(crate) fn is_said(&self) -> bool {
        self.loss.is_some()
    }

    /// `3.2 GB`.
    pub(crate) fn memory(&self) -> Option<String> {
        self.memory_bytes.map(|bytes| memory(float(bytes)))
    }

    /// `NLL 2.311, KL 0.402 after step 100`, on held-out data.
    pub(crate) fn held_out(&self) -> Option<String> {
        let (step, nll) = self.valid_step.zip(self.valid_nll)?;
        let kl = self.valid_kl.map_or_else(String::new, |kl| format!(", KL {}", nats(kl)));
        Some(format!("NLL {}{kl} after step {step}", nats(nll)))
    }
}

/// `loss 2.413  CE 1.802  KL 0.611  alpha 1  lr 9.80e-6`.
impl Display for Learning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(loss) = self.loss else { return Ok(()) };
        write!(out, "loss {}", nats(loss))?;
        // Without a teacher the loss is the cross-entropy.
        if let Some(divergence) = self.divergence {
            if let Some(cross_entropy) = self.cross_entropy {
                write!(out, "  CE {}", nats(cross_entropy))?;
            }
            write!(out, "  {} {}", self.divergence_name, nats(divergence))?;
            if let Some(alpha) = self.alpha {
                write!(out, "  alpha {}", short(alpha))?;
            }
        }
        if let Some(rate) = self.learning_rate {
            write!(out, "  lr {rate:.2e}")?;
        }
        Ok(())
    }
}

/// Three decimals at most and none that are zero; a small value by its exponent.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_digits_that_matter() {
        let mut said = Learning::default();
        assert!(!said.is_said() && said.to_string().is_empty());
        for (name, value) in [
            ("loss", 2.5),
            ("cross_entropy", 1.25),
            ("divergence", 0.012_34),
            ("alpha", 0.5),
            ("learning_rate", 9.8e-6),
        ] {
            said.record_f64(name, value);
        }
        said.record_str("divergence_name", "reverse KL");
        said.record_u64("memory_bytes", 3_210_000_000);
        assert_eq!(said.to_string(), "loss 2.500  CE 1.250  reverse KL 0.01234  alpha 0.5  lr 9.80e-6");
        assert_eq!((said.memory().as_deref(), said.held_out()), (Some("3.2 GB"), None));
        said.record_u64("valid_step", 100);
        said.record_f64("valid_nll", 12.345);
        assert_eq!(said.held_out().as_deref(), Some("NLL 12.35 after step 100"));
        said.record_f64("valid_kl", 0.4);
        assert_eq!(said.held_out().as_deref(), Some("NLL 12.35, KL 0.400 after step 100"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([1.0, 0.333_33, 0.1, 0.0].map(short), ["1", "0.333", "0.1", "0"]);
        assert_eq!([0.0, 1e-6, 3e-4, 123.45].map(nats), ["0.000", "1.0e-6", "0.00030", "123.5"]);
        assert_eq!([12_345_678.0, 8e10].map(memory), ["12 MB", "80.0 GB"]);
    }
}
