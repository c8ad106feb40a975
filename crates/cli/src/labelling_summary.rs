//! What `teacher-labels` says at the end of a split: what was made, how fast, where the time went, and what is left to do.

use std::fmt::{self, Display};

use softshard_teacher::Summary;

use crate::numbers::{duration, float, grouped, size};

/// A summary for people.
pub(crate) struct Told<'a> {
    /// Of the dataset.
    pub(crate) split: &'a str,
    /// What the run did.
    pub(crate) summary: &'a Summary,
    /// As it was asked for.
    pub(crate) device: &'a str,
    /// Of a device, in any currency.
    pub(crate) price_per_hour: Option<f64>,
}

impl Display for Told<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "teacher-labels {}: {}", self.split, self.made())?;
        if self.summary.labelled_tokens > 0 {
            writeln!(out, "  labels   {}", self.labels())?;
            writeln!(out, "  speed    {}", self.speed())?;
            writeln!(out, "  devices  {}", self.devices())?;
            writeln!(out, "  time     {}", self.time())?;
        }
        if self.summary.remaining_tokens > 0 {
            writeln!(out, "  left     {}", self.rest())?;
        }
        Ok(())
    }
}

impl Told<'_> {
    /// The dataset, or what a task made of it.
    fn made(&self) -> String {
        let Summary { shards, own_shards, new_shards, .. } = self.summary;
        let before = own_shards - new_shards;
        let is_finished = self.summary.bytes > 0;
        let (shards, tokens, bytes) = if is_finished {
            (format!("{shards} shards"), self.summary.dataset_labelled_tokens, self.summary.bytes)
        } else {
            (format!("{own_shards} of {shards} shards"), self.summary.labelled_tokens, self.summary.new_bytes)
        };
        let new = if is_finished { "" } else { "new " };
        let mut text =
            format!("{shards} ({before} there before), {} {new}labelled tokens", grouped(float(tokens)));
        if tokens > 0 {
            text +=
                &format!(", {}, {:.1} bytes per labelled token", size(bytes), float(bytes) / float(tokens));
        }
        text
    }

    fn labels(&self) -> String {
        let Summary { labelled_tokens, entropy, retained_mass, .. } = self.summary;
        let mean = |sum: f64| sum / float(*labelled_tokens);
        format!(
            "mean entropy {:.3} nats, retained mass {:.2} %",
            mean(*entropy),
            100.0 * mean(*retained_mass)
        )
    }

    /// While there was something to label.
    fn per_second(&self, tokens: u64) -> f64 {
        float(tokens) / self.summary.seconds.labelling.max(1e-3)
    }

    fn device_count(&self) -> f64 {
        float(u64::try_from(self.summary.devices.max(1)).unwrap_or(1))
    }

    fn device_hour(&self) -> &'static str {
        if self.device.starts_with("cuda") { "GPU-hour" } else { "device-hour" }
    }

    fn speed(&self) -> String {
        let Summary { tokens, labelled_tokens, padded_tokens, .. } = self.summary;
        format!(
            "{} tokens/s ({} labelled), padding {:.1} %, of attention alone",
            grouped(self.per_second(*tokens)),
            grouped(self.per_second(*labelled_tokens)),
            100.0 * (1.0 - float(*tokens) / float((*padded_tokens).max(1)))
        )
    }

    fn devices(&self) -> String {
        let Summary { devices, tokens, retries, seconds, .. } = self.summary;
        let mut text = format!(
            "{devices}, busy {:.1} % of the labelling, {} tokens per {}",
            100.0 * seconds.busy_share,
            grouped(self.per_second(*tokens) * 3600.0 / self.device_count()),
            self.device_hour()
        );
        match retries {
            0 => {}
            1 => text += ", 1 batch done again in halves",
            count => text += &format!(", {count} batches done again in halves"),
        }
        text
    }

    /// Shares of the whole time; forward and head share the time in which the devices were busy.
    fn time(&self) -> String {
        let seconds = &self.summary.seconds;
        let share = |part: f64| part / seconds.total.max(1e-3);
        let busy = seconds.busy_share * share(seconds.labelling);
        let computing = (seconds.forward + seconds.head).max(1e-9);
        let parts = [
            ("load", share(seconds.load)),
            ("forward", busy * seconds.forward / computing),
            ("head", busy * seconds.head / computing),
        ];
        let other = 1.0 - parts.iter().map(|(_, share)| share).sum::<f64>();
        let beside = [("read", seconds.read), ("write", seconds.write), ("commit", seconds.commit)];
        let shares = |parts: &[(&str, f64)]| {
            let parts: Vec<String> =
                parts.iter().map(|(name, share)| format!("{name} {:.0} %", 100.0 * share.max(0.0))).collect();
            parts.join(", ")
        };
        format!(
            "{}: {}; beside them {}",
            if seconds.total < 10.0 { format!("{:.1} s", seconds.total) } else { duration(seconds.total) },
            shares(&[&parts[..], &[("other", other)]].concat()),
            shares(&beside.map(|(name, seconds)| (name, share(seconds))))
        )
    }

    /// At the speed of this run, on its devices.
    fn rest(&self) -> String {
        let remaining = float(self.summary.remaining_tokens);
        let mut text = format!("about {} tokens in shards that nobody has committed", grouped(remaining));
        if self.summary.tokens == 0 {
            return text;
        }
        let seconds = remaining / self.per_second(self.summary.tokens);
        let device_hours = seconds * self.device_count() / 3600.0;
        text += &format!(": {} at this speed, {device_hours:.2} {}s", duration(seconds), self.device_hour());
        if let Some(price) = self.price_per_hour {
            text += &format!(", {:.2} at {price} an hour", device_hours * price);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use softshard_teacher::Breakdown;

    use super::*;

    fn summary() -> Summary {
        Summary {
            shards: 10,
            own_shards: 10,
            new_shards: 8,
            new_bytes: 95_400_000,
            sequences: 8_000,
            tokens: 1_200_000,
            labelled_tokens: 600_000,
            padded_tokens: 1_220_000,
            bytes: 119_000_000,
            dataset_labelled_tokens: 748_000,
            devices: 2,
            entropy: 1_206_000.0,
            retained_mass: 558_000.0,
            retries: 3,
            remaining_tokens: 0,
            seconds: Breakdown {
                load: 20.0,
                read: 2.0,
                forward: 300.0,
                head: 90.0,
                write: 4.0,
                commit: 1.0,
                labelling: 200.0,
                busy_share: 0.975,
                total: 220.0,
            },
        }
    }

    #[test]
    fn a_run_is_told_in_five_lines() {
        let summary = summary();
        let told = Told { split: "train", summary: &summary, device: "cuda:0,1", price_per_hour: Some(2.5) };
        let expected = "\
teacher-labels train: 10 shards (2 there before), 748,000 labelled tokens, 119.0 MB, 159.1 bytes per labelled token
  labels   mean entropy 2.010 nats, retained mass 93.00 %
  speed    6,000 tokens/s (3,000 labelled), padding 1.6 %, of attention alone
  devices  2, busy 97.5 % of the labelling, 10,800,000 tokens per GPU-hour, 3 batches done again in halves
  time     3.7 min: load 9 %, forward 68 %, head 20 %, other 2 %; beside them read 1 %, write 2 %, commit 0 %
";
        assert_eq!(told.to_string(), expected);
    }

    #[test]
    fn a_task_says_what_the_others_will_cost() {
        let summary = Summary {
            own_shards: 9,
            bytes: 0,
            dataset_labelled_tokens: 0,
            remaining_tokens: 36_000_000,
            ..summary()
        };
        let told = Told { split: "train", summary: &summary, device: "cpu,cpu", price_per_hour: Some(2.5) };
        let told = told.to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            [lines[0], lines[5]],
            [
                "teacher-labels train: 9 of 10 shards (1 there before), 600,000 new labelled tokens, 95.4 MB, 159.0 bytes per labelled token",
                "  left     about 36,000,000 tokens in shards that nobody has committed: 100.0 min at this speed, 3.33 device-hours, 8.33 at 2.5 an hour"
            ]
        );
    }

    #[test]
    fn a_finished_dataset_is_one_line() {
        let summary = Summary { new_shards: 0, tokens: 0, labelled_tokens: 0, ..summary() };
        let told = Told { split: "valid", summary: &summary, device: "cpu", price_per_hour: None };
        assert_eq!(told.to_string().lines().count(), 1, "{told}");
    }
}
