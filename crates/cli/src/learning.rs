//! What a training says on its dashboard line: losses, the learning rate, memory, and the last look at
//! held-out data.

use std::fmt::{self, Display};

use softshard_labels::{Progress, Scalar};

use crate::numbers::{memory, nats};

/// What a training says of itself beside how far it is.
#[derive(Clone)]
pub(crate) struct Learning {
    loss: f64,
    cross_entropy: Option<f64>,
    divergence: Option<f64>,
    divergence_name: Option<&'static str>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    memory_bytes: Option<f64>,
    valid_step: Option<f64>,
    valid_nll: Option<f64>,
    valid_kl: Option<f64>,
}

impl Learning {
    /// Of its progress; other stages have no loss.
    pub(crate) fn of(progress: &Progress<'_>, divergence_name: Option<&'static str>) -> Option<Self> {
        let value = |name| progress.scalar(name).map(Scalar::as_f64);
        Some(Learning {
            loss: value("loss")?,
            cross_entropy: value("cross_entropy"),
            divergence: value("divergence"),
            divergence_name,
            alpha: value("alpha"),
            learning_rate: value("learning_rate"),
            memory_bytes: value("memory_bytes"),
            valid_step: value("valid_step"),
            valid_nll: value("valid_nll"),
            valid_kl: value("valid_kl"),
        })
    }

    /// `3.2 GB`.
    pub(crate) fn memory(&self) -> Option<String> {
        self.memory_bytes.map(memory)
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
        write!(out, "loss {}", nats(self.loss))?;
        // Without a teacher the loss is the cross-entropy.
        if let Some(divergence) = self.divergence {
            if let Some(cross_entropy) = self.cross_entropy {
                write!(out, "  CE {}", nats(cross_entropy))?;
            }
            write!(out, "  {} {}", self.divergence_name.unwrap_or("divergence"), nats(divergence))?;
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
        let said = |scalars: &[(&'static str, Scalar)]| {
            Learning::of(&Progress { scalars, ..Progress::default() }, Some("reverse KL"))
        };
        assert!(said(&[("tokens", Scalar::Count(3))]).is_none());
        let mut scalars = vec![
            ("loss", Scalar::Real(2.5)),
            ("cross_entropy", Scalar::Real(1.25)),
            ("divergence", Scalar::Real(0.012_34)),
            ("alpha", Scalar::Real(0.5)),
            ("learning_rate", Scalar::Real(9.8e-6)),
            ("memory_bytes", Scalar::Count(3_210_000_000)),
        ];
        let learning = said(&scalars).expect("a training");
        assert_eq!(learning.to_string(), "loss 2.500  CE 1.250  reverse KL 0.01234  alpha 0.5  lr 9.80e-6");
        assert_eq!((learning.memory().as_deref(), learning.held_out()), (Some("3.2 GB"), None));
        scalars.extend([("valid_step", Scalar::Count(100)), ("valid_nll", Scalar::Real(12.345))]);
        let held_out = |scalars: &[_]| said(scalars).and_then(|learning| learning.held_out());
        assert_eq!(held_out(&scalars).as_deref(), Some("NLL 12.35 after step 100"));
        scalars.push(("valid_kl", Scalar::Real(0.4)));
        assert_eq!(held_out(&scalars).as_deref(), Some("NLL 12.35, KL 0.400 after step 100"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([1.0, 0.333_33, 0.1, 0.0].map(short), ["1", "0.333", "0.1", "0"]);
        assert_eq!([0.0, 1e-6, 3e-4, 123.45].map(nats), ["0.000", "1.0e-6", "0.00030", "123.5"]);
        assert_eq!([12_345_678.0, 8e10].map(memory), ["12 MB", "80.0 GB"]);
    }
}
