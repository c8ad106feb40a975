//! `softshard labels import`.

use std::{cell::OnceCell, collections::HashMap, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Result;
use clap::{Args, ValueEnum};
use softshard_labels::{
    ColumnMap, DistillKitConfig, Error, ImportSource, ImportTarget, Imported, LabelPlan, PositionRule,
    TeacherIdentity, import as import_labels, import_jsonl,
};
use softshard_prepare::Tokenizer;

use super::{count, float, number, percent};
use crate::{progress, recipe::RecipeError};

/// Arguments of `labels import`.
#[derive(Args)]
pub(crate) struct Import {
    /// Folder that receives the labels; an import that was interrupted goes on here
    pub(crate) output: PathBuf,
    /// Files to read, in order; a folder stands for its .parquet or .jsonl files by name
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// What wrote them
    #[arg(long, value_enum)]
    pub(crate) from: From,
    /// The teacher's name, recorded as not verified
    #[arg(long, value_name = "NAME")]
    pub(crate) teacher: Option<String>,
    /// Ids of the teacher, where it has more than the tokenizer
    #[arg(long, value_name = "N")]
    pub(crate) teacher_vocab_size: Option<u32>,
    /// The labels' tokenizer: tokenizer.json or its folder
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Name of the split
    #[arg(long, default_value = "train")]
    pub(crate) split: String,
    /// Name of the prompt template
    #[arg(long, default_value = "unknown")]
    pub(crate) template: String,
    /// Which token the entries at a place describe: this one, or the next (parquet)
    #[arg(long, value_enum, value_name = "RULE")]
    pub(crate) position_rule: Option<Rule>,
    /// Columns as KEY=COLUMN, such as input_ids=tokens,token_ids=top_ids,log_probs=top_logprobs (parquet)
    #[arg(long, value_delimiter = ',', value_name = "KEY=COLUMN")]
    pub(crate) map: Vec<String>,
    /// Log-probabilities are those among the kept entries; tail_log_mass is mapped (parquet)
    #[arg(long)]
    pub(crate) normalised: bool,
    /// compression_config.yaml of the capture, if it does not lie beside the first file (distillkit)
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Entries that the server was asked for (completions)
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// The mass that entries reach, where their number differs from position to position (parquet)
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Compute the mass that was cut off of rounded or fitted log-probabilities
    #[arg(long)]
    pub(crate) approximate_tail: bool,
    /// Mantissa bits kept of log_probs
    #[arg(long, value_name = "N", default_value_t = LabelPlan::DEFAULT_MANTISSA_BITS)]
    pub(crate) mantissa_bits: u32,
    /// Sequences of a shard
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) sequences_per_shard: u64,
    /// Manifest of the export, if it does not lie beside the file (softshard)
    #[arg(long, value_name = "PATH")]
    pub(crate) manifest: Option<PathBuf>,
}

/// What wrote the files.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    /// Captures of DistillKit: Parquet with bit-packed ids and fitted log-probabilities
    Distillkit,
    /// Responses of vLLM and OpenAI-compatible servers, one per line
    Completions,
    /// Parquet with columns that --map names
    Parquet,
    /// JSONL that `labels export` wrote
    Softshard,
}

/// Where entries belong.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rule {
    /// Entries at t describe token t
    This,
    /// Entries at t describe token t+1
    Next,
}

/// Imports and says what came out.
pub(super) fn import(options: &Import, stop: &AtomicBool) -> Result<()> {
    let imported = read(options, stop)?;
    progress::leave();
    let manifest = &imported.manifest;
    println!(
        "imported: {} shards ({} there before), {} sequences, {} labelled tokens",
        number(manifest.shards.len()),
        number(manifest.shards.len() - imported.written),
        count(manifest.rows),
        count(manifest.labelled_tokens)
    );
    if imported.passed_over > 0 {
        println!("passed over {} rows without a labelled position", count(imported.passed_over));
    }
    if imported.mass_above_one > 0 {
        let share = percent(float(imported.mass_above_one) / float(manifest.labelled_tokens));
        println!("{share} of the positions have a mass above 1.001: their log-probabilities are not exact");
    }
    println!("labels: {}", options.output.display());
    Ok(())
}

fn read(options: &Import, stop: &AtomicBool) -> Result<Imported> {
    let files = files(&options.inputs, options.from)?;
    if options.from == From::Softshard {
        let [file] = files.as_slice() else { return Err(usage("one file with --from softshard")) };
        return Ok(import_jsonl(&options.output, file, options.manifest.as_deref(), stop)?);
    }
    let needed = |flag: &str| usage(&format!("`{flag}` with this `--from`"));
    let path = options.tokenizer.as_deref().ok_or_else(|| needed("--tokenizer"))?;
    let tokenizer = Tokenizer::load(path)?;
    let name = options.teacher.as_deref().ok_or_else(|| needed("--teacher"))?;
    let texts = Texts { tokenizer: &tokenizer, ids: OnceCell::new() };
    let resolve = |text: &str| texts.id(text);
    let (config, columns);
    let (origin, vocab_size, source) = match options.from {
        From::Distillkit => {
            config = capture_config(options, &files)?;
            let origin =
                format!("DistillKit k={} exact_k={} {:?}", config.k, config.exact_k, config.exact_dtype);
            (origin.to_lowercase(), config.d, ImportSource::DistillKit { files: &files, config: &config })
        }
        From::Completions => {
            let top_k = options.top_k.ok_or_else(|| needed("--top-k"))?;
            let source = ImportSource::Completions { files: &files, top_k, resolve: &resolve };
            (format!("responses of a server, top {top_k}"), tokenizer.vocab_size(), source)
        }
        _ => {
            columns = column_map(options)?;
            let source = ImportSource::Parquet { files: &files, columns: &columns };
            ("Parquet".to_owned(), tokenizer.vocab_size(), source)
        }
    };
    let vocab_size = options.teacher_vocab_size.unwrap_or(vocab_size).max(tokenizer.vocab_size());
    let target = ImportTarget {
        tokenizer: tokenizer.fingerprint().clone(),
        template: options.template.clone(),
        split: options.split.clone(),
        teacher: TeacherIdentity::unverified(name, &origin, vocab_size),
        top_p: options.top_p,
        approximate_tail: options.approximate_tail,
        mantissa_bits: options.mantissa_bits,
        sequences_per_shard: options.sequences_per_shard,
    };
    Ok(import_labels(&options.output, &source, &target, stop)?)
}

/// Bad usage: exit code 2.
fn usage(expected: &str) -> anyhow::Error {
    RecipeError(format!("labels import: expected {expected}")).into()
}

/// The files themselves, and those of the folders that were named.
fn files(inputs: &[PathBuf], from: From) -> Result<Vec<PathBuf>> {
    let ending = if matches!(from, From::Distillkit | From::Parquet) { "parquet" } else { "jsonl" };
    let mut files = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            files.push(input.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs_err::read_dir(input)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
        // `data_2` comes before `data_10`.
        found.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        if found.is_empty() {
            let place = format!("`{}`", input.display());
            return Err(Error::bad(place, format_args!("files that end in .{ending}"), "none").into());
        }
        files.extend(found);
    }
    Ok(files)
}

/// `compression_config.yaml` of a capture.
fn capture_config(options: &Import, files: &[PathBuf]) -> Result<DistillKitConfig> {
    let beside = || files[0].with_file_name("compression_config.yaml");
    let path = options.config.clone().unwrap_or_else(beside);
    Ok(DistillKitConfig::load(&path)?)
}

fn column_map(options: &Import) -> Result<ColumnMap> {
    let Some(rule) = options.position_rule else {
        return Err(usage(
            "`--position-rule this` or `next`: do entries at a place describe its token or the next one?",
        ));
    };
    let rule = match rule {
        Rule::This => PositionRule::This,
        Rule::Next => PositionRule::Next,
    };
    let pair = |pair: &String| {
        let (key, column) =
            pair.split_once('=').ok_or_else(|| usage(&format!("`--map KEY=COLUMN`, found `{pair}`")))?;
        Ok((key.trim().to_owned(), column.trim().to_owned()))
    };
    let pairs = options.map.iter().map(pair).collect::<Result<Vec<_>>>()?;
    ColumnMap::new(pairs, rule, options.normalised)
        .map_err(|error| usage(&format!("a mapping that fits\n{error}")))
}

/// Ids of tokens by their text.
struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    ids: OnceCell<HashMap<String, Vec<i32>>>,
}

impl Texts<'_> {
    fn id(&self, text: &str) -> Result<i32, String> {
        let ids = self.ids.get_or_init(|| self.all());
        match ids.get(text).map(Vec::as_slice) {
            Some([id]) => Ok(*id),
            Some(ids) => Err(format!("{} tokens, among them {} and {}", ids.len(), ids[0], ids[1])),
            None => Err("no token".to_owned()),
        }
    }

    fn all(&self) -> HashMap<String, Vec<i32>> {
        let mut ids: HashMap<String, Vec<i32>> = HashMap::new();
        for id in 0..i32::try_from(self.tokenizer.vocab_size()).unwrap_or(i32::MAX) {
            if let Ok(text) = self.tokenizer.decode_all(&[id]) {
                ids.entry(text).or_default().push(id);
            }
        }
        ids
    }
}
