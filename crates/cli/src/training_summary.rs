//! What a training says at its end: how far it came, how fast, in how much memory, and where the time went.

use std::fmt::{self, Display};

use softshard_student::{Metric, Summary};

use crate::numbers::{duration, float, grouped, memory, nats};

/// A summary for people.
pub(crate) struct Told<'a> {
    /// Of the stage.
    pub(crate) name: &'a str,
    /// What the run did.
    pub(crate) summary: &'a Summary,
    /// What the best evaluation is the least of.
    pub(crate) best_by: Option<Metric>,
    /// Most memory of the process, or of one of its devices.
    pub(crate) peak_bytes: Option<u64>,
}

impl Display for Told<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { steps, sequences, trained_parameters, parameters, tokens, last_loss, .. } =
            self.summary;
        let count = |count: usize| grouped(float(count as u64));
        writeln!(
            out,
            "{}: {} steps over {} sequences, {} of {} parameters trained",
            self.name,
            grouped(float(*steps)),
            count(*sequences),
            count(*trained_parameters),
            count(*parameters)
        )?;
        if let Some(best) = self.best() {
            writeln!(out, "  best     {best}")?;
        }
        // A run that was done before takes no steps.
        let Some(loss) = last_loss else { return Ok(()) };
        let seconds = &self.summary.seconds;
        writeln!(out, "  loss     {} nats per labelled token in the last step", nats(*loss))?;
        writeln!(
            out,
            "  speed    {} tokens/s, {} tokens in all; waiting for data {:.1} % of the time",
            grouped(float(*tokens) / seconds.total.max(1e-3)),
            grouped(float(*tokens)),
            100.0 * seconds.read / seconds.total.max(1e-3)
        )?;
        if let Some(bytes) = self.peak_bytes {
            writeln!(out, "  memory   {} at most", memory(float(bytes)))?;
        }
        writeln!(out, "  time     {}", self.time())
    }
}

impl Told<'_> {
    /// On held-out data.
    fn best(&self) -> Option<String> {
        let Summary { best, steps, planned_steps, exported_step, .. } = self.summary;
        let (best, metric) = (*best.as_ref()?, self.best_by?);
        let value = match metric {
            Metric::Nll => format!("NLL {}", nats(best.value)),
            Metric::Kl => format!("KL {}", nats(best.value)),
            Metric::Ece => format!("ECE {:.2} %", 100.0 * best.value),
        };
        let early = if steps < planned_steps {
            format!(
                "; no better one since, so {} planned steps were left out",
                grouped(float(planned_steps - steps))
            )
        } else {
            String::new()
        };
        let written = if *exported_step == best.step {
            "its weights are written".to_owned()
        } else {
            format!("the weights of step {} are written", grouped(float(*exported_step)))
        };
        Some(format!("{value} on held-out data after step {}{early}; {written}", grouped(float(best.step))))
    }

    /// Shares of the whole time; forward, head and backward share the time in which the workers computed.
    fn time(&self) -> String {
        let seconds = &self.summary.seconds;
        let share = |part: f64| (part / seconds.total.max(1e-3)).clamp(0.0, 1.0);
        let computing = 1.0 - share(seconds.read + seconds.update + seconds.evaluate + seconds.write);
        let all = (seconds.forward + seconds.head + seconds.backward).max(1e-9);
        let parts = [
            ("forward", computing * seconds.forward / all),
            ("head", computing * seconds.head / all),
            ("backward", computing * seconds.backward / all),
            ("update", share(seconds.update)),
            ("evaluate", share(seconds.evaluate)),
            ("write", share(seconds.write)),
        ];
        let parts: Vec<String> =
            parts.iter().map(|(name, share)| format!("{name} {:.0} %", 100.0 * share)).collect();
        let total = seconds.total;
        let total = if total < 10.0 { format!("{total:.1} s") } else { duration(total) };
        format!("{total}: {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use softshard_student::{Best, Breakdown};

    use super::*;

    fn summary(last_loss: Option<f64>) -> Summary {
        Summary {
            output: "run/student/adapter".into(),
            steps: 1_500,
            planned_steps: 1_500,
            best: None,
            exported_step: 1_500,
            sequences: 60,
            trained_parameters: 12_288,
            parameters: 134_105_856,
            tokens: 1_200_000,
            last_loss,
            seconds: Breakdown {
                read: 0.6,
                forward: 300.0,
                head: 100.0,
                backward: 400.0,
                update: 50.0,
                evaluate: 30.0,
                write: 9.4,
                total: 600.0,
            },
        }
    }

    fn told(summary: &Summary) -> Told<'_> {
        let (best_by, peak_bytes) = (Some(Metric::Nll), Some(3_210_000_000));
        Told { name: "train-student", summary, best_by, peak_bytes }
    }

    #[test]
    fn a_run_is_told_in_a_few_lines() {
        let summary = summary(Some(2.413_49));
        let expected = "\
train-student: 1,500 steps over 60 sequences, 12,288 of 134,105,856 parameters trained
  loss     2.413 nats per labelled token in the last step
  speed    2,000 tokens/s, 1,200,000 tokens in all; waiting for data 0.1 % of the time
  memory   3.2 GB at most
  time     10.0 min: forward 32 %, head 11 %, backward 42 %, update 8 %, evaluate 5 %, write 2 %
";
        assert_eq!(told(&summary).to_string(), expected);
    }

    #[test]
    fn a_run_that_was_done_says_so_in_one() {
        assert_eq!(told(&summary(None)).to_string().lines().count(), 1);
    }

    #[test]
    fn the_best_step_is_said() {
        let best = Some(Best { step: 1_000, value: 2.311 });
        let told_of = |summary: Summary| told(&summary).to_string().lines().nth(1).map(str::to_owned);
        let whole =
            "  best     NLL 2.311 on held-out data after step 1,000; the weights of step 1,500 are written";
        assert_eq!(told_of(Summary { best, ..summary(None) }).as_deref(), Some(whole));
        let early = Summary { best, planned_steps: 9_000, exported_step: 1_000, ..summary(Some(2.0)) };
        let expected = "after step 1,000; no better one since, so 7,500 planned steps were left out; its weights are written";
        assert!(told_of(early).is_some_and(|line| line.ends_with(expected)));
    }
}
