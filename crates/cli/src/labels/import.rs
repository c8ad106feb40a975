//! `softshard labels import`.

use std::{cell::OnceCell, collections::HashMap, path::PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum, value_parser};
use softshard_labels::{
    BadRows, ColumnMap, DistillKitConfig, Error, ImportSource, ImportTarget, Imported, LabelPlan,
    PositionRule, TeacherIdentity, import as import_labels, import_jsonl,
};
use softshard_prepare::Tokenizer;

use crate::{
    numbers::{count, float, number, percent},
    recipe::RecipeError,
    session::Session,
};

/// Arguments of `labels import`.
#[derive(Args)]
pub(crate) struct Import {
    /// Files to read, in order; a folder stands for its .parquet or .jsonl files by name
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Folder that receives the labels; an import that was interrupted goes on here
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// What wrote them
    #[arg(long, value_enum)]
    pub(crate) from: From,
    /// The teacher's name, recorded as not verified (all but softshard)
    #[arg(long, value_name = "NAME")]
    pub(crate) teacher: Option<String>,
    /// Ids of the teacher, where it has more than the tokenizer (all but softshard)
    #[arg(long, value_name = "N")]
    pub(crate) teacher_vocab_size: Option<u32>,
    /// The labels' tokenizer: tokenizer.json or its folder (all but softshard)
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Name of the split (all but softshard) [default: train]
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Name of the prompt template (all but softshard) [default: unknown]
    #[arg(long, value_name = "NAME")]
    pub(crate) template: Option<String>,
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
    /// Compute the mass that was cut off of rounded or fitted log-probabilities (all but softshard)
    #[arg(long)]
    pub(crate) approximate_tail: bool,
    /// Mantissa bits kept of log_probs (all but softshard) [default: 7]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=23))]
    pub(crate) mantissa_bits: Option<u32>,
    /// Sequences of a shard (all but softshard) [default: 1000]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(crate) sequences_per_shard: Option<u64>,
    /// What a row that cannot be read means (all but softshard) [default: refuse]
    #[arg(long, value_enum, value_name = "RULE")]
    pub(crate) bad_rows: Option<BadRow>,
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

/// What becomes of rows that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BadRow {
    /// The first one ends the import, before anything is written
    Refuse,
    /// They are left out, counted, and listed in dropped_rows.jsonl beside the labels
    Drop,
}

/// Imports and says what came out.
pub(super) fn import(options: &Import, session: &Session) -> Result<()> {
    let imported = read(options, session)?;
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
    if let Some(list) = &imported.dropped.list {
        let dropped = &imported.dropped;
        println!(
            "dropped {} rows that cannot be read; all of them: {}",
            count(dropped.count),
            list.display()
        );
        dropped.first.iter().for_each(|reason| println!("  {reason}"));
        let more = dropped.count - u64::try_from(dropped.first.len())?;
        if more > 0 {
            println!("  and {} more", count(more));
        }
    }
    if imported.mass_above_one > 0 {
        let share = percent(float(imported.mass_above_one) / float(manifest.labelled_tokens));
        println!("{share} of the positions have a mass above 1.001: their log-probabilities are not exact");
    }
    println!("labels: {}", options.output.display());
    Ok(())
}

/// Refuses what says nothing about this source: whoever gave it expects that it does.
fn check_options(options: &Import) -> Result<()> {
    const FOREIGN: &[From] = &[From::Distillkit, From::Completions, From::Parquet];
    let Import { teacher, teacher_vocab_size, tokenizer, split, template, position_rule, .. } = options;
    let given: [(&str, bool, &[From]); 16] = [
        ("--teacher", teacher.is_some(), FOREIGN),
        ("--teacher-vocab-size", teacher_vocab_size.is_some(), FOREIGN),
        ("--tokenizer", tokenizer.is_some(), FOREIGN),
        ("--split", split.is_some(), FOREIGN),
        ("--template", template.is_some(), FOREIGN),
        ("--approximate-tail", options.approximate_tail, FOREIGN),
        ("--mantissa-bits", options.mantissa_bits.is_some(), FOREIGN),
        ("--sequences-per-shard", options.sequences_per_shard.is_some(), FOREIGN),
        ("--bad-rows", options.bad_rows.is_some(), FOREIGN),
        ("--position-rule", position_rule.is_some(), &[From::Parquet]),
        ("--map", !options.map.is_empty(), &[From::Parquet]),
        ("--normalised", options.normalised, &[From::Parquet]),
        ("--top-p", options.top_p.is_some(), &[From::Parquet]),
        ("--config", options.config.is_some(), &[From::Distillkit]),
        ("--top-k", options.top_k.is_some(), &[From::Completions]),
        ("--manifest", options.manifest.is_some(), &[From::Softshard]),
    ];
    match given.iter().find(|(_, is_given, sources)| *is_given && !sources.contains(&options.from)) {
        Some((flag, ..)) => Err(usage(&format!("no `{flag}` with this `--from`"))),
        None => Ok(()),
    }
}

/// Rows of the teacher's head: as was said, or `own` and those of the tokenizer.
fn vocab_size(options: &Import, own: u32, tokenizer: &Tokenizer) -> Result<u32> {
    let least = tokenizer.vocab_size();
    match options.teacher_vocab_size {
        Some(size) if size < least => Err(usage(&format!(
            "a `--teacher-vocab-size` from the {least} ids of the tokenizer on, found {size}"
        ))),
        Some(size) => Ok(size),
        None => Ok(own.max(least)),
    }
}

fn read(options: &Import, session: &Session) -> Result<Imported> {
    let (stop, observer) = (session.stop, &session.observer());
    check_options(options)?;
    let files = files(&options.inputs, options.from)?;
    if options.from == From::Softshard {
        let [file] = files.as_slice() else { return Err(usage("one file with --from softshard")) };
        return Ok(import_jsonl(&options.output, file, options.manifest.as_deref(), stop, observer)?);
    }
    let needed = |flag: &str| usage(&format!("`{flag}` with this `--from`"));
    let path = options.tokenizer.as_deref().ok_or_else(|| needed("--tokenizer"))?;
    let tokenizer = Tokenizer::load(path)?;
    let name = options.teacher.as_deref().ok_or_else(|| needed("--teacher"))?;
    let texts = Texts { tokenizer: &tokenizer, ids: OnceCell::new() };
    let resolve = |text: &str, all: &[&str]| texts.id(text, all);
    let (config, columns);
    let (origin, own, source) = match options.from {
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
    let target = ImportTarget {
        tokenizer: tokenizer.fingerprint().clone(),
        template: options.template.clone().unwrap_or_else(|| "unknown".to_owned()),
        split: options.split.clone().unwrap_or_else(|| "train".to_owned()),
        teacher: TeacherIdentity::unverified(name, &origin, vocab_size(options, own, &tokenizer)?),
        top_p: options.top_p,
        approximate_tail: options.approximate_tail,
        mantissa_bits: options.mantissa_bits.unwrap_or(LabelPlan::DEFAULT_MANTISSA_BITS),
        sequences_per_shard: options.sequences_per_shard.unwrap_or(1000),
        bad_rows: match options.bad_rows {
            Some(BadRow::Drop) => BadRows::Drop,
            Some(BadRow::Refuse) | None => BadRows::Refuse,
        },
    };
    Ok(import_labels(&options.output, &source, &target, stop, observer)?)
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
///
/// Where a tokenizer drops the space before the first token of a text, some servers print ` the` as `the`, which may be
/// another token, and some do not.
struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    ids: OnceCell<Ids>,
}

/// Ids by what is printed of them.
#[derive(Default)]
struct Ids {
    /// Behind another token.
    within: HashMap<String, Vec<i32>>,
    /// Alone.
    alone: HashMap<String, Vec<i32>>,
}

impl Texts<'_> {
    /// The only token that may have been printed as `text`, in a response with `all` these texts.
    fn id(&self, text: &str, all: &[&str]) -> Result<i32, String> {
        let ids = self.ids.get_or_init(|| self.read());
        let within = ids.within.get(text).map_or(&[][..], Vec::as_slice);
        let alone = ids.alone.get(text).map_or(&[][..], Vec::as_slice);
        let mut found = [within, alone].concat();
        found.sort_unstable();
        found.dedup();
        // A text that has a token is not spelt in bytes.
        if found.iter().any(|id| !self.tokenizer.is_byte(*id)) {
            found.retain(|id| !self.tokenizer.is_byte(*id));
        }
        // Printed alone, no token has such a text: this server keeps spaces.
        let keeps_spaces = |text: &&str| {
            text.starts_with(' ') && ids.within.contains_key(*text) && !ids.alone.contains_key(*text)
        };
        if found.len() > 1 && all.iter().any(keeps_spaces) {
            found.retain(|id| within.contains(id));
        }
        match found.as_slice() {
            [id] => Ok(*id),
            [] => Err("no token".to_owned()),
            ids => Err(format!("{} tokens, among them {} and {}", ids.len(), ids[0], ids[1])),
        }
    }

    fn read(&self) -> Ids {
        let size = i32::try_from(self.tokenizer.vocab_size()).unwrap_or(i32::MAX);
        let text = |ids: &[i32]| self.tokenizer.decode_all(ids).unwrap_or_default();
        // A token that stays what it is before whatever follows it.
        let is_letter = |text: &str| matches!(text.as_bytes(), [letter] if letter.is_ascii_alphanumeric());
        let before = (0..size).rev().map(|id| (id, text(&[id]))).find(|(_, text)| is_letter(text));
        let mut ids = Ids::default();
        for id in 0..size {
            let alone = text(&[id]);
            let within = before.as_ref().and_then(|(first, letter)| {
                Some(text(&[*first, id]).strip_prefix(letter.as_str())?.to_owned())
            });
            let within = within.unwrap_or_else(|| alone.clone());
            for (by, text) in [(&mut ids.within, within), (&mut ids.alone, alone)] {
                by.entry(text).or_default().push(id);
            }
        }
        ids
    }
}
