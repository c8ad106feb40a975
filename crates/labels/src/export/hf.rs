//! Labels as training rows for Hugging Face trainers: every column as long as the sequence, entries as lists in lists.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{for_each_group, part_of, write_whole};
use crate::dataset::{LabelDataset, LabelPlan};
use crate::observer::Observer;
use crate::parquet::failed;
use crate::shard::LabelGroup;
use crate::values::{Error, LabelsView, OptionalColumn, quoted};

/// What trainers of Hugging Face pass over in `labels`.
const IGNORED: i32 = -100;
/// Row groups of ours in a file: about a million labelled tokens.
const GROUPS_PER_FILE: usize = 85;

/// Writes the labels to a new folder that `datasets.load_dataset` opens, ready to train on.
///
/// Every list has one element for each token of the sequence. `labels` are the ids where the loss counts and -100
/// elsewhere, not shifted: as in transformers, the model shifts them. `teacher_*` stand at the same places: what is at
/// t describes token t, so a trainer compares it with the logits of t-1. Outside of the mask lists are empty and
/// numbers 0.
///
/// # Errors
/// [`Error::Bad`] if the folder is there and not empty, or a file, or a row group is damaged; I/O,
/// [`std::io::ErrorKind::Interrupted`] when `stop` is set. The folder is whole or not there.
pub fn export_hf(
    dataset: &LabelDataset,
    output: &Path,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let output = new_folder(output)?;
    let part = part_of(&output);
    let data = part.join("data");
    if let Some(parent) = part.parent() {
        fs_err::create_dir_all(parent)?;
    }
    fs_err::create_dir(&part)?;
    fs_err::create_dir(&data)?;
    let written = write_files(dataset, &data, stop, observer);
    let written = written.and_then(|files| {
        let card = card(&dataset.manifest().plan, &files);
        write_whole(&part.join("README.md"), |to| Ok(std::io::Write::write_all(to, card.as_bytes())?))
    });
    match written {
        Ok(()) => Ok(fs_err::rename(&part, output)?),
        Err(error) => {
            fs_err::remove_dir_all(&part)?;
            Err(error)
        }
    }
}

/// The folder to write, by a path to which a suffix can be put: `out/` and `.` are none.
fn new_folder(output: &Path) -> Result<PathBuf, Error> {
    let expected = "a folder that is not there or empty";
    let found = match fs_err::symlink_metadata(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => output.components().collect(),
        found => {
            found?;
            fs_err::canonicalize(output)?
        }
    };
    if found.file_name().is_none() {
        return Err(Error::bad(quoted(output), expected, "a path without a name"));
    }
    if !found.exists() {
        return Ok(found);
    }
    if !found.is_dir() {
        return Err(Error::bad(quoted(output), expected, "a file"));
    }
    match fs_err::read_dir(&found)?.next() {
        None => Ok(found),
        Some(_) => Err(Error::bad(quoted(output), expected, "files in it")),
    }
}

/// Names of the files that were written below `data`.
fn write_files(
    dataset: &LabelDataset,
    data: &Path,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Vec<String>, Error> {
    let plan = &dataset.manifest().plan;
    let count = dataset.groups().div_ceil(GROUPS_PER_FILE);
    let names: Vec<String> =
        (0..count).map(|index| format!("{}-{index:05}-of-{count:05}.parquet", plan.split)).collect();
    let message =
        Arc::new(parse_message_type(&message(plan)).expect("our names are letters, digits and underscores"));
    let level = ZstdLevel::try_new(3).expect("a level of zstd");
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level));
    let properties = Arc::new(properties.set_dictionary_enabled(false).build());
    let mut open: Option<SerializedFileWriter<fs_err::File>> = None;
    let mut groups = 0;
    for_each_group(dataset, stop, observer, |group| {
        if groups % GROUPS_PER_FILE == 0 {
            close(open.take())?;
            let file = fs_err::File::create_new(data.join(&names[groups / GROUPS_PER_FILE]))?;
            let writer =
                SerializedFileWriter::new(file, message.clone(), properties.clone()).map_err(failed)?;
            open = Some(writer);
        }
        groups += 1;
        let mut to = open.as_mut().expect("opened above").next_row_group().map_err(failed)?;
        write_group(&mut to, group, plan).and_then(|()| to.close().map(drop)).map_err(failed)
    })?;
    close(open)?;
    Ok(names)
}

fn close(writer: Option<SerializedFileWriter<fs_err::File>>) -> Result<(), Error> {
    writer.map_or(Ok(()), |writer| Ok(writer.into_inner().map_err(failed)?.sync_all()?))
}

/// Columns with one number for each token.
fn number_columns(plan: &LabelPlan) -> Vec<String> {
    let has = |column| !plan.omit.contains(&column);
    let mut names = vec!["teacher_tail_log_mass".to_owned()];
    let optional = [
        (OptionalColumn::LogSumExp, "teacher_log_sum_exp"),
        (OptionalColumn::Entropy, "teacher_entropy"),
        (OptionalColumn::GoldLogProb, "teacher_gold_log_prob"),
    ];
    names.extend(optional.into_iter().filter(|(column, _)| has(*column)).map(|(_, name)| name.to_owned()));
    let of_temperatures = plan.partition_columns().into_iter().chain(plan.tail_columns());
    names.extend(of_temperatures.map(|name| format!("teacher_{name}")));
    names
}

fn message(plan: &LabelPlan) -> String {
    let flat = |name: &str, element: &str| {
        format!("required group {name} (LIST) {{ repeated group list {{ required {element} element; }} }} ")
    };
    let nested = |name: &str, element: &str| {
        let inner = format!("repeated group list {{ required {element} element; }}");
        format!(
            "required group {name} (LIST) {{ repeated group list {{ required group element (LIST) {{ {inner} }} }} }} "
        )
    };
    let mut text = "message labels { optional binary source (STRING); ".to_owned();
    text += &["input_ids", "attention_mask", "labels"].map(|name| flat(name, "int32")).concat();
    text += &nested("teacher_token_ids", "int32");
    if plan.selection.is_exact() {
        text += &nested("teacher_log_probs", "float");
    }
    if plan.selection.draws().is_some() {
        text += &nested("teacher_sample_counts", "int32");
    }
    number_columns(plan).iter().for_each(|name| text += &flat(name, "float"));
    text + "}"
}

/// Values of a column with their levels.
struct Leveled<T> {
    values: Vec<T>,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

impl<T: Copy> Leveled<T> {
    fn new() -> Self {
        Self { values: Vec::new(), defined: Vec::new(), repeated: Vec::new() }
    }

    /// A row of a flat list, which is not empty.
    fn push_row(&mut self, row: &[T]) {
        self.values.extend_from_slice(row);
        self.defined.resize(self.values.len(), 1);
        self.repeated.push(0);
        self.repeated.resize(self.values.len(), 1);
    }

    /// A list in the list of a row.
    fn push_list(&mut self, is_first: bool, list: &[T]) {
        self.values.extend_from_slice(list);
        self.repeated.push(i16::from(!is_first));
        self.repeated.extend(list.iter().skip(1).map(|_| 2));
        self.defined.push(if list.is_empty() { 1 } else { 2 });
        self.defined.extend(list.iter().skip(1).map(|_| 2));
    }
}

/// The columns of a row group that have a value, or a list, for each token.
struct Tokens {
    input_ids: Leveled<i32>,
    attention_mask: Leveled<i32>,
    labels: Leveled<i32>,
    token_ids: Leveled<i32>,
    log_probs: Leveled<f32>,
    sample_counts: Leveled<i32>,
    numbers: Vec<Leveled<f32>>,
}

impl Tokens {
    fn new(plan: &LabelPlan) -> Self {
        Self {
            input_ids: Leveled::new(),
            attention_mask: Leveled::new(),
            labels: Leveled::new(),
            token_ids: Leveled::new(),
            log_probs: Leveled::new(),
            sample_counts: Leveled::new(),
            numbers: number_columns(plan).iter().map(|_| Leveled::new()).collect(),
        }
    }

    fn push(&mut self, row: LabelsView<'_>) {
        let length = row.input_ids.len();
        let place = |position: i32| usize::try_from(position).expect("positions were checked");
        let mut labels = vec![IGNORED; length];
        let mut next = 0;
        for entries in row.entries() {
            let position = place(entries.position);
            labels[position] = row.input_ids[position];
            self.push_empty(next..position);
            self.token_ids.push_list(position == 0, entries.token_ids);
            self.log_probs.push_list(position == 0, entries.log_probs);
            self.sample_counts.push_list(position == 0, entries.sample_counts);
            next = position + 1;
        }
        self.push_empty(next..length);
        self.input_ids.push_row(row.input_ids);
        self.attention_mask.push_row(&vec![1; length]);
        self.labels.push_row(&labels);
        let optional = [row.tail_log_mass, row.log_sum_exp, row.entropy, row.gold_log_prob];
        let present = optional.into_iter().filter(|values| !values.is_empty());
        let present = present.chain(row.log_partitions).chain(row.tail_log_masses);
        for (column, values) in self.numbers.iter_mut().zip(present) {
            let mut spread = vec![0.0; length];
            for (position, value) in row.positions.iter().zip(values) {
                spread[place(*position)] = *value;
            }
            column.push_row(&spread);
        }
    }

    fn push_empty(&mut self, places: Range<usize>) {
        for place in places {
            self.token_ids.push_list(place == 0, &[]);
            self.log_probs.push_list(place == 0, &[]);
            self.sample_counts.push_list(place == 0, &[]);
        }
    }

    fn write(
        &self,
        to: &mut SerializedRowGroupWriter<'_, fs_err::File>,
        plan: &LabelPlan,
    ) -> Result<(), ParquetError> {
        for column in [&self.input_ids, &self.attention_mask, &self.labels, &self.token_ids] {
            write_column::<Int32Type>(to, column)?;
        }
        if plan.selection.is_exact() {
            write_column::<FloatType>(to, &self.log_probs)?;
        }
        if plan.selection.draws().is_some() {
            write_column::<Int32Type>(to, &self.sample_counts)?;
        }
        self.numbers.iter().try_for_each(|column| write_column::<FloatType>(to, column))
    }
}

/// Writes the columns in the order of [`message`].
fn write_group(
    to: &mut SerializedRowGroupWriter<'_, fs_err::File>,
    group: &LabelGroup,
    plan: &LabelPlan,
) -> Result<(), ParquetError> {
    let sources: Vec<Option<&str>> = (0..group.len()).map(|row| group.source(row)).collect();
    let texts: Vec<ByteArray> = sources.iter().flatten().map(|text| ByteArray::from(*text)).collect();
    let defined: Vec<i16> = sources.iter().map(|text| i16::from(text.is_some())).collect();
    let mut column = to.next_column()?.expect("as many columns as the schema has");
    column.typed::<ByteArrayType>().write_batch(&texts, Some(&defined), None)?;
    column.close()?;
    let mut tokens = Tokens::new(plan);
    (0..group.len()).for_each(|row| tokens.push(group.row(row)));
    tokens.write(to, plan)
}

fn write_column<T: DataType>(
    to: &mut SerializedRowGroupWriter<'_, fs_err::File>,
    column: &Leveled<T::T>,
) -> Result<(), ParquetError> {
    let mut writer = to.next_column()?.expect("as many columns as the schema has");
    writer.typed::<T>().write_batch(&column.values, Some(&column.defined), Some(&column.repeated))?;
    writer.close()
}

fn card(plan: &LabelPlan, files: &[String]) -> String {
    let files: String = files.iter().map(|file| format!("    - data/{file}\n")).collect();
    format!(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {}\n    path:\n{files}---\n\
         # Training rows with teacher labels\n\n\
         Exported by softshard. `labels` are not shifted and -100 outside of the loss mask; what `teacher_*` hold at t \
         describes token t given the tokens before it, so compare it with the logits at t-1. Log-probabilities are of \
         the full vocabulary at temperature 1; `teacher_tail_log_mass` is the logarithm of what was cut off.\n",
        serde_json::to_string(&plan.split).expect("a text")
    )
}
