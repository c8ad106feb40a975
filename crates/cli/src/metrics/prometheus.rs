//! A text file for node_exporter's textfile collector: the last value of every scalar.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fs_err as fs;

const BETWEEN_WRITES: Duration = Duration::from_secs(1);

/// The last values, and the file that shows them.
pub(crate) struct TextFile {
    path: PathBuf,
    /// By name, then by labels.
    gauges: BTreeMap<String, BTreeMap<String, f64>>,
    /// Values that the file does not have yet.
    is_stale: bool,
    written: Option<Instant>,
}

impl TextFile {
    /// The file at `path`; what it holds is replaced at the first write.
    pub(crate) fn new(path: &Path) -> Self {
        TextFile { path: path.to_owned(), gauges: BTreeMap::new(), is_stale: false, written: None }
    }

    /// Sets `softshard_<name>{labels}`.
    pub(crate) fn set(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        self.gauges.entry(format!("softshard_{name}")).or_default().insert(labels.join(","), value);
        self.is_stale = true;
    }

    /// Writes what is new, at most once a second.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_if_due(&mut self) -> io::Result<()> {
        if self.is_stale && self.written.is_none_or(|at| at.elapsed() >= BETWEEN_WRITES) {
            self.write()?;
        }
        Ok(())
    }

    /// Writes the file beside itself and renames it, so that a reader sees one state. It is no file to sync: the next second
    /// has another one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id())); // no collector reads this ending
        let beside = self.path.with_file_name(name);
        let written = fs::write(&beside, self.text()).and_then(|()| fs::rename(&beside, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&beside); // a part of it on a full disk; the first error is what counts
        }
        (self.is_stale, self.written) = (false, Some(Instant::now()));
        written
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, values) in &self.gauges {
            let _ = writeln!(text, "# TYPE {name} gauge"); // a string takes everything
            for (labels, value) in values {
                let _ = writeln!(text, "{name}{{{labels}}} {}", number(*value));
            }
        }
        text
    }
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_values_stand_by_name_and_labels() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut file = TextFile::new(&folder.path().join("softshard.prom"));
        file.set("tokens", &[("split", "train")], 1.0);
        file.write_if_due().expect("written");
        file.set("tokens", &[("split", "train")], 3.0);
        file.set("tokens", &[("split", "a\"b\\c")], 1e22);
        file.set("padding", &[("split", "train")], f64::NAN);
        file.write_if_due().expect("not due");
        let read = || fs::read_to_string(folder.path().join("softshard.prom")).expect("the file is there");
        assert_eq!(read(), "# TYPE softshard_tokens gauge\nsoftshard_tokens{split=\"train\"} 1\n");
        file.write().expect("written");
        let expected = "\
# TYPE softshard_padding gauge
softshard_padding{split=\"train\"} NaN
# TYPE softshard_tokens gauge
softshard_tokens{split=\"a\\\"b\\\\c\"} 10000000000000000000000
softshard_tokens{split=\"train\"} 3
";
        assert_eq!(read(), expected);
        let files = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing is left beside it");
    }
}
