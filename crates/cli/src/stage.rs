//! What stages take on the command line.

use std::path::PathBuf;

use clap::Args;

/// What every stage takes.
#[derive(Args)]
pub(crate) struct Stage {
    /// The run's recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Override one value of the recipe by its path, such as student.loss.alpha=0.1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Where tensors live: cpu, or cuda:0; to label and to train several, as cuda:0,1, or all with cuda; or wgpu:0, in builds that have it
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

/// For the parser of the command line: a count of something.
///
/// # Errors
/// It is none, or 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}
