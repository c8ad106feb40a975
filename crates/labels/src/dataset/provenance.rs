//! What an artefact was made from: written with it, compared by whoever reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read,
    path::Path,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::LabelPlan;
use crate::host::{Links, regular};
use crate::values::{Error, Tokenizer, json};

/// What is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Artefact {
    /// Token ids with a loss mask.
    Sequences,
    /// A teacher's distributions.
    Labels,
    /// A training: its checkpoints, its adapter or its model.
    Run,
    /// The scores of a model.
    Evaluation,
}

/// What an artefact was made from. Nothing in it is a time, a host or an absolute path: same inputs, same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Always `softshard-provenance`.
    #[schemars(extend("const" = Provenance::FORMAT))]
    pub format: String,
    /// Version of the format.
    #[schemars(extend("const" = Provenance::VERSION))]
    pub version: u32,
    /// What is described.
    pub kind: Artefact,
    /// Version of the softshard that made it.
    pub softshard: String,
    /// BLAKE3 of everything that was read, hexadecimal, by name; `none` for what might have been there and was not.
    pub inputs: BTreeMap<String, String>,
    /// The sections of the resolved recipe, as far as they change numbers, without paths.
    pub recipe: BTreeMap<String, Value>,
    /// The type that it was computed in, for example `f32`; none where nothing was computed.
    pub dtype: Option<String>,
    /// Kinds of the devices that computed it, for example `cpu`.
    pub devices: BTreeSet<String>,
    /// Differences that were found on the way and taken all the same.
    pub accepted: Vec<Difference>,
    /// What its inputs say of themselves, where they say it.
    pub from: BTreeMap<String, Provenance>,
}

/// A value that two provenances do not share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Its dotted name, as `data.template`: what `--accept` takes, whole or its beginning.
    pub name: String,
    /// What was asked for.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// Where two provenances are compared, and what a user takes there.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// What is read, as it stands in messages.
    pub place: &'a str,
    /// What to do about a difference, besides accepting it.
    pub hint: &'a str,
    /// Names that `--accept` gave.
    pub accept: &'a [String],
}

impl Provenance {
    /// Format name.
    pub const FORMAT: &'static str = "softshard-provenance";
    /// Version of the format.
    pub const VERSION: u32 = 1;
    /// Name of the file, where it is one of its own.
    pub const FILE: &'static str = "provenance.json";
    /// The value of an input that might have been there and was not.
    pub const NONE: &'static str = "none";

    /// One that says nothing yet but who writes it.
    pub fn new(kind: Artefact) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            kind,
            softshard: env!("CARGO_PKG_VERSION").to_owned(),
            inputs: BTreeMap::new(),
            recipe: BTreeMap::new(),
            dtype: None,
            devices: BTreeSet::new(),
            accepted: Vec::new(),
            from: BTreeMap::new(),
        }
    }

    /// Adds an input by its hash.
    pub fn input(&mut self, name: impl Into<String>, blake3: impl Into<String>) {
        self.inputs.insert(name.into(), blake3.into());
    }

    /// Adds the parts of a tokenizer that decide what ids mean.
    pub fn tokenizer(&mut self, tokenizer: &Tokenizer) {
        self.input("tokenizer.vocabulary", &tokenizer.vocabulary_blake3);
        self.input("tokenizer.normalizer", &tokenizer.normalizer_blake3);
        let template = tokenizer.chat_template_blake3.as_deref().unwrap_or(Self::NONE);
        self.input("tokenizer.chat_template", template);
        if let Some(merges) = &tokenizer.merges_blake3 {
            self.input("tokenizer.merges", merges);
        }
    }

    /// Adds differences that were taken, each once.
    pub fn accept(&mut self, differences: impl IntoIterator<Item = Difference>) {
        self.accepted.extend(differences);
        self.accepted.sort();
        self.accepted.dedup();
    }

    /// Values that `found` has otherwise, by name: inputs and types that both know, and all of the recipe.
    ///
    /// Who wrote it, on which kind of device, and what its inputs say of themselves is no difference: the hashes are.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let mut differences: Vec<Difference> = Vec::new();
        for (name, expected) in &self.inputs {
            if let Some(found) = found.inputs.get(name).filter(|found| *found != expected) {
                differences.push(Difference::of(name, short(expected), short(found)));
            }
        }
        if let (Some(expected), Some(found)) = (&self.dtype, &found.dtype)
            && expected != found
        {
            differences.push(Difference::of("dtype", expected, found));
        }
        let changes = json::changes(&self.recipe, &found.recipe).into_iter();
        differences.extend(changes.map(|[name, expected, found]| Difference::of(&name, expected, found)));
        differences.sort();
        differences
    }

    /// Compares what a stage expects with what it `found` at a door. Gives the differences that the user takes.
    ///
    /// # Errors
    /// [`Error::OtherProvenance`] names all others, with both values.
    pub fn check(&self, found: &Self, door: &Door<'_>) -> Result<Vec<Difference>, Error> {
        door.pass(self.differences(found))
    }

    /// Compares the base model that a run, this one, learnt over with the one that its adapter is put on now. Gives the differences
    /// that the user takes.
    ///
    /// # Errors
    /// As [`Provenance::check`].
    pub fn check_base(&self, base: &Self, door: &Door<'_>) -> Result<Vec<Difference>, Error> {
        let [learnt, found] = [self, base].map(|one| {
            let mut only = Self::new(Artefact::Run);
            let is_base = |name: &str| name == "model.config" || name == "model.weights";
            let inputs = one.inputs.iter().filter(|(name, _)| is_base(name));
            only.inputs = inputs.map(|(name, blake3)| (name.clone(), blake3.clone())).collect();
            only
        });
        learnt.check(&found, door)
    }

    /// Reads the provenance of a folder; none where it has none.
    ///
    /// # Errors
    /// [`Error::Bad`] if it is no provenance, or of another version; I/O.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(Self::FILE);
        // In the Hub's cache every file is a link.
        match regular::read(&path, Links::Followed) {
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            bytes => json::parse(&path, &bytes?, Self::FORMAT, Self::VERSION).map(Some),
        }
    }

    /// Writes it as `provenance.json` into a folder, all of it or nothing.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let (path, unfinished) = (folder.join(Self::FILE), folder.join(".provenance.json.writing"));
        fs_err::write(&unfinished, self.to_json())?;
        fs_err::File::open(&unfinished)?.sync_all()?;
        Ok(fs_err::rename(&unfinished, &path)?)
    }

    /// Pretty-printed JSON with a newline at its end.
    pub fn to_json(&self) -> Vec<u8> {
        json::to_bytes(self)
    }
}

/// What labels say of themselves: their plan, in the words of a provenance.
impl From<&LabelPlan> for Provenance {
    fn from(plan: &LabelPlan) -> Self {
        let mut this = Self::new(Artefact::Labels);
        this.input("sequences", &plan.sequences);
        this.tokenizer(&plan.tokenizer);
        let teacher = &plan.teacher;
        this.input("teacher.config", &teacher.config_blake3);
        this.input("teacher.weights", &teacher.weights_blake3);
        this.input("teacher.adapter", teacher.adapter_blake3.as_deref().unwrap_or(Self::NONE));
        this.dtype = Some(teacher.dtype.clone());
        let altered = teacher.altered.as_ref();
        let is_calibrated = altered.is_some_and(|one| one.is_calibrated);
        let scale = altered.map_or(1.0, |one| one.logit_scale);
        let of_teacher = serde_json::json!({
            "is_calibrated": is_calibrated,
            // A scale that was fitted follows from the rest.
            "logit_scale": if is_calibrated { 1.0 } else { scale },
            "label_noise": altered.map_or(0.0, |one| one.label_noise),
        });
        let of_labels = serde_json::json!({
            "selection": plan.selection,
            "mantissa_bits": plan.mantissa_bits,
            "position_mantissa_bits": plan.position_mantissa_bits,
            "omit": plan.omit,
            "temperatures": plan.temperatures,
        });
        let of_data = serde_json::json!({ "template": plan.template, "split": { "seed": plan.seed } });
        this.recipe.insert("teacher".to_owned(), of_teacher);
        this.recipe.insert("labels".to_owned(), of_labels);
        this.recipe.insert("data".to_owned(), of_data);
        this
    }
}

impl Difference {
    /// A value that was asked for, and the one that is there.
    pub fn of(name: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self { name: name.to_owned(), expected: expected.to_string(), found: found.to_string() }
    }

    /// Whether one of the names that a user gave is this one, or what it is a part of.
    pub fn is_accepted(&self, accept: &[String]) -> bool {
        let is_named = |given: &String| match self.name.strip_prefix(given.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        accept.iter().any(is_named)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: expected {}, found {}", self.name, self.expected, self.found)
    }
}

impl Door<'_> {
    /// Lets through what the user takes.
    ///
    /// # Errors
    /// [`Error::OtherProvenance`] names all differences that he does not take.
    pub fn pass(&self, differences: Vec<Difference>) -> Result<Vec<Difference>, Error> {
        let (accepted, refused): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|difference| difference.is_accepted(self.accept));
        if refused.is_empty() {
            return Ok(accepted);
        }
        let names: Vec<String> = refused.iter().map(|one| format!("--accept {}", one.name)).collect();
        let hint = format!("{}, or take it as it is with `{}`", self.hint, names.join(" "));
        let differences = refused.iter().map(Difference::to_string).collect();
        Err(Error::OtherProvenance { place: self.place.to_owned(), differences, hint })
    }
}

/// The beginning of a hash, which is enough to tell two apart.
pub fn short(blake3: &str) -> &str {
    match blake3.get(..12) {
        Some(start) if blake3.len() == 64 => start,
        _ => blake3,
    }
}

/// BLAKE3 of a file, hexadecimal.
///
/// # Errors
/// The file cannot be read, or is none whose content stays: a pipe, a device.
pub fn file_blake3(path: &Path) -> Result<String, Error> {
    let (mut hasher, mut file) = (blake3::Hasher::new(), regular::open(path, Links::Followed)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sequences() -> Provenance {
        let mut one = Provenance::new(Artefact::Sequences);
        one.input("data.instructions.0", "a".repeat(64));
        one.recipe.insert("data".to_owned(), json!({ "template": "none", "split": { "seed": 1 } }));
        one
    }

    #[test]
    fn differences_are_named_and_those_that_are_taken_are_given() {
        let (one, mut other) = (sequences(), sequences());
        assert_eq!(one.differences(&other), []);
        other.input("data.instructions.0", "b".repeat(64));
        other.recipe.insert("data".to_owned(), json!({ "template": "chat", "split": { "seed": 2 } }));
        let door = |accept| Door { place: "sequences `s`", hint: "prepare again", accept };
        let error = one.check(&other, &door(&[])).unwrap_err();
        assert!(error.is_bad_data());
        assert_eq!(
            error.to_string(),
            "sequences `s`: expected what the recipe says, found otherwise:\n  \
             data.instructions.0: expected aaaaaaaaaaaa, found bbbbbbbbbbbb\n  \
             data.split.seed: expected 1, found 2\n  data.template: expected \"none\", found \"chat\"\n\
             hint: prepare again, or take it as it is with \
             `--accept data.instructions.0 --accept data.split.seed --accept data.template`"
        );
        let some = ["data.split".to_owned(), "data.templ".to_owned()];
        let error = one.check(&other, &door(&some)).unwrap_err().to_string();
        assert!(error.contains("data.template") && !error.contains("seed"), "{error}");
        let all = ["data".to_owned()];
        let taken = one.check(&other, &door(&all)).unwrap();
        assert_eq!(
            taken.iter().map(|one| &*one.name).collect::<Vec<_>>(),
            ["data.instructions.0", "data.split.seed", "data.template"]
        );
        let mut made = sequences();
        made.accept(taken.clone());
        made.accept(taken);
        assert_eq!(made.accepted.len(), 3);
    }

    #[test]
    fn what_is_not_known_on_both_sides_is_no_difference() {
        let (mut one, mut other) = (sequences(), sequences());
        one.input("tokenizer.vocabulary", "c");
        other.softshard = "0.0.0".to_owned();
        other.devices.insert("cuda".to_owned());
        other.dtype = Some("bf16".to_owned());
        assert_eq!(one.differences(&other), []);
        one.dtype = Some("f32".to_owned());
        assert_eq!(one.differences(&other)[0].to_string(), "dtype: expected f32, found bf16");
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Provenance::read(folder.path()).unwrap(), None);
        let mut one = sequences();
        one.from.insert("labels".to_owned(), sequences());
        one.write(folder.path()).unwrap();
        assert_eq!(Provenance::read(folder.path()).unwrap(), Some(one));
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        fs_err::write(
            folder.path().join(Provenance::FILE),
            r#"{"format": "softshard-provenance", "version": 2}"#,
        )
        .unwrap();
        let error = Provenance::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("expected version 1, found 2"), "{error}");
    }

    #[test]
    fn the_hash_of_a_file_is_that_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs_err::write(&path, "some").unwrap();
        assert_eq!(file_blake3(&path).unwrap(), blake3::hash(b"some").to_hex().to_string());
        assert!(file_blake3(folder.path()).is_err());
    }
}
