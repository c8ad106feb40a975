//! Row groups in memory: what is collected before it is written, and what decoding gives.

use super::reader::ShardReader;
use super::schema::{COUNTS, EXAMPLE, INPUT_IDS, KEY, LabelColumns, POSITIONS, SOURCE, TOKEN_IDS};
use crate::parquet::{Chunk, Column, List, PageDecoder, Word};
use crate::values::{
    Error, Example, LabelLimits, LabelsView, ReadLimits, Sequence, SequenceKey, SequenceLabels, Validator,
};

/// A row group of sequences; label groups begin with the same columns.
#[derive(Debug, Default)]
pub(crate) struct SequenceGroup {
    keys: Vec<SequenceKey>,
    sources: Vec<Option<String>>,
    input_ids: List<i32>,
    positions: List<i32>,
    /// Of sequences alone; none where the shard has no such column.
    examples: Vec<Option<String>>,
    example_bytes: usize,
}

/// Key and sizes of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSize {
    pub(crate) key: SequenceKey,
    pub(crate) input_tokens: usize,
    pub(crate) labelled_tokens: usize,
}

impl SequenceGroup {
    pub(crate) fn push(&mut self, source: Option<String>, input_ids: &[i32], positions: &[i32]) {
        self.keys.push(SequenceKey::of(input_ids));
        self.sources.push(source);
        self.input_ids.push(input_ids);
        self.positions.push(positions);
    }

    /// Adds the example of the sequence that was pushed last.
    pub(crate) fn push_example(&mut self, example: Option<String>) {
        self.example_bytes += example.as_ref().map_or(0, String::len);
        self.examples.push(example);
    }

    /// Bytes of all examples.
    pub(crate) fn example_bytes(&self) -> usize {
        self.example_bytes
    }

    pub(crate) fn rows(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn input_tokens(&self) -> usize {
        self.input_ids.values.len()
    }

    pub(crate) fn labelled_tokens(&self) -> usize {
        self.positions.values.len()
    }

    pub(crate) fn columns(&self) -> [Column<'_>; 4] {
        [
            Column::Keys(&self.keys),
            Column::Texts(&self.sources),
            Column::Ints(&self.input_ids),
            Column::Ints(&self.positions),
        ]
    }

    /// The columns of a sequence shard.
    pub(crate) fn all_columns(&self) -> Vec<Column<'_>> {
        let mut columns = Vec::from(self.columns());
        columns.push(Column::Texts(&self.examples));
        columns
    }

    /// Decodes and checks a row group of a sequence shard.
    pub(crate) fn read(
        shard: &ShardReader,
        group: usize,
        vocab_size: u32,
        limits: &ReadLimits,
    ) -> Result<Self, Error> {
        shard.decode(group, |pages, chunks| {
            let this = Self {
                keys: pages.keys(chunks[KEY])?,
                sources: pages.texts(chunks[SOURCE])?,
                input_ids: pages.list(chunks[INPUT_IDS])?,
                positions: pages.list(chunks[POSITIONS])?,
                examples: chunks.get(EXAMPLE).map_or(Ok(Vec::new()), |chunk| pages.texts(*chunk))?,
                example_bytes: 0,
            };
            for row in 0..this.rows() {
                let within = |error: Error| error.within(format_args!("row {row}"));
                this.check_row(row, limits)
                    .and_then(|()| {
                        crate::values::check_sequence(
                            this.input_ids.row(row),
                            this.positions.row(row),
                            vocab_size,
                        )
                    })
                    .and_then(|()| this.example(row).map(drop))
                    .map_err(within)?;
            }
            Ok(this)
        })
    }

    /// Checks what does not depend on the vocabulary.
    fn check_row(&self, row: usize, limits: &ReadLimits) -> Result<(), Error> {
        check_ids(self.input_ids.row(row), self.keys[row], limits)
    }

    /// The example of a row, where it has one.
    pub(crate) fn example(&self, row: usize) -> Result<Option<Example>, Error> {
        let text = self.examples.get(row).and_then(Option::as_ref);
        text.map(|text| Example::from_text(text, self.input_ids.row_len(row))).transpose()
    }

    /// A copy of a row.
    pub(crate) fn sequence(&self, row: usize) -> Sequence {
        Sequence {
            source: self.sources[row].clone(),
            input_ids: self.input_ids.row(row).to_vec(),
            positions: self.positions.row(row).to_vec(),
        }
    }
}

/// Checks length and key of a sequence.
pub(crate) fn check_ids(input_ids: &[i32], key: SequenceKey, limits: &ReadLimits) -> Result<(), Error> {
    if input_ids.len() > limits.sequence_tokens {
        let expected = format!("at most {} ids", limits.sequence_tokens);
        return Err(Error::bad("input_ids", expected, input_ids.len()));
    }
    let expected = SequenceKey::of(input_ids);
    if expected != key {
        return Err(Error::bad("sequence_key", format_args!("{expected}, as of input_ids"), key));
    }
    Ok(())
}

/// Decodes only the keys and the sizes of a row group of either kind of shard.
pub(crate) fn row_sizes(shard: &ShardReader, group: usize) -> Result<Vec<RowSize>, Error> {
    shard.decode(group, |pages, chunks| {
        let keys = pages.keys(chunks[KEY])?;
        let input_ids = pages.list::<i32>(chunks[INPUT_IDS])?;
        let positions = pages.list::<i32>(chunks[POSITIONS])?;
        let size = |(row, key)| RowSize {
            key,
            input_tokens: input_ids.row_len(row),
            labelled_tokens: positions.row_len(row),
        };
        Ok(keys.into_iter().enumerate().map(size).collect())
    })
}

/// A row group of labels, decoded: memory to use again for the next one.
#[derive(Debug, Default)]
pub struct LabelGroup {
    pub(crate) sequences: SequenceGroup,
    counts: List<i32>,
    token_ids: List<i32>,
    log_probs: List<f32>,
    sample_counts: List<i32>,
    log_sum_exp: List<f32>,
    tail_log_mass: List<f32>,
    entropy: List<f32>,
    gold_log_prob: List<f32>,
    log_partitions: Vec<List<f32>>,
    tail_log_masses: Vec<List<f32>>,
}

impl LabelGroup {
    /// An empty row group for labels with these extra temperatures.
    pub(crate) fn new(limits: &LabelLimits) -> Self {
        Self {
            log_partitions: vec![List::default(); limits.temperatures],
            tail_log_masses: vec![List::default(); limits.tails()],
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, labels: &SequenceLabels) {
        self.sequences.push(labels.source.clone(), &labels.input_ids, &labels.positions);
        self.counts.push(&labels.counts);
        self.token_ids.push(&labels.token_ids);
        self.log_probs.push(&labels.log_probs);
        self.sample_counts.push(&labels.sample_counts);
        self.log_sum_exp.push(&labels.log_sum_exp);
        self.tail_log_mass.push(&labels.tail_log_mass);
        self.entropy.push(&labels.entropy);
        self.gold_log_prob.push(&labels.gold_log_prob);
        let columns = self.log_partitions.iter_mut().chain(&mut self.tail_log_masses);
        for (column, row) in columns.zip(labels.log_partitions.iter().chain(&labels.tail_log_masses)) {
            column.push(row);
        }
    }

    /// All columns that labels with these limits have, in the order of the schema.
    pub(crate) fn columns(&self, limits: &LabelLimits) -> Vec<Column<'_>> {
        let at = LabelColumns::of(limits);
        let mut columns = Vec::from(self.sequences.columns());
        let ids = if limits.draws.is_some() { Column::Drawn } else { Column::NoisyInts };
        columns.extend([Column::Counts(&self.counts), ids(&self.token_ids)]);
        columns.extend(at.log_probs.map(|_| Column::NoisyFloats(&self.log_probs)));
        columns.extend(at.sample_counts.map(|_| Column::Drawn(&self.sample_counts)));
        let floats = [
            (at.log_sum_exp, &self.log_sum_exp),
            (at.tail_log_mass, &self.tail_log_mass),
            (at.entropy, &self.entropy),
            (at.gold_log_prob, &self.gold_log_prob),
        ];
        columns.extend(floats.into_iter().filter_map(|(place, list)| place.map(|_| Column::Floats(list))));
        columns.extend(self.log_partitions.iter().chain(&self.tail_log_masses).map(Column::Floats));
        columns
    }

    /// Decodes and checks a row group of a label shard, into memory that is there already. After an error it is empty.
    pub(crate) fn read(
        &mut self,
        shard: &ShardReader,
        group: usize,
        labels: &LabelLimits,
        limits: &ReadLimits,
    ) -> Result<(), Error> {
        let mut this = std::mem::take(self);
        *self = shard.decode(group, |pages, chunks| {
            this.decode(pages, chunks, labels)?;
            let mut validator = Validator::new(labels);
            for row in 0..this.sequences.rows() {
                this.check_row(row, &mut validator, limits)
                    .map_err(|error| error.within(format_args!("row {row}")))?;
            }
            Ok(this)
        })?;
        Ok(())
    }

    /// Decodes all columns; looks at sizes alone.
    pub(crate) fn decode(
        &mut self,
        pages: &mut PageDecoder,
        chunks: &[Chunk<'_>],
        limits: &LabelLimits,
    ) -> Result<(), Error> {
        let at = LabelColumns::of(limits);
        self.sequences.keys = pages.keys(chunks[KEY])?;
        self.sequences.sources = pages.texts(chunks[SOURCE])?;
        pages.list_into(chunks[INPUT_IDS], &mut self.sequences.input_ids)?;
        pages.list_into(chunks[POSITIONS], &mut self.sequences.positions)?;
        pages.list_into(chunks[COUNTS], &mut self.counts)?;
        pages.list_into(chunks[TOKEN_IDS], &mut self.token_ids)?;
        optional(pages, chunks, at.log_probs, &mut self.log_probs)?;
        optional(pages, chunks, at.sample_counts, &mut self.sample_counts)?;
        optional(pages, chunks, at.log_sum_exp, &mut self.log_sum_exp)?;
        optional(pages, chunks, at.tail_log_mass, &mut self.tail_log_mass)?;
        optional(pages, chunks, at.entropy, &mut self.entropy)?;
        optional(pages, chunks, at.gold_log_prob, &mut self.gold_log_prob)?;
        self.log_partitions.resize_with(at.log_partitions.len(), List::default);
        self.tail_log_masses.resize_with(at.tail_log_masses.len(), List::default);
        let columns = self.log_partitions.iter_mut().chain(&mut self.tail_log_masses);
        let places = at.log_partitions.chain(at.tail_log_masses);
        columns.zip(places).try_for_each(|(column, place)| pages.list_into(chunks[place], column))
    }

    /// Decodes one column and forgets it: names the column that [`LabelGroup::decode`] could not decode.
    pub(crate) fn try_column(
        pages: &mut PageDecoder,
        chunks: &[Chunk<'_>],
        column: usize,
        limits: &LabelLimits,
    ) -> Result<(), Error> {
        let chunk = chunks[column];
        match column {
            KEY => pages.keys(chunk).map(drop),
            SOURCE => pages.texts(chunk).map(drop),
            INPUT_IDS | POSITIONS | COUNTS | TOKEN_IDS => pages.list::<i32>(chunk).map(drop),
            _ if LabelColumns::of(limits).sample_counts == Some(column) => pages.list::<i32>(chunk).map(drop),
            _ => pages.list::<f32>(chunk).map(drop),
        }
    }

    /// Checks a row: sizes, key, and all that a reader relies on.
    pub(crate) fn check_row(
        &self,
        row: usize,
        validator: &mut Validator<'_>,
        limits: &ReadLimits,
    ) -> Result<(), Error> {
        self.sequences.check_row(row, limits).and_then(|()| validator.labels(&self.row(row)))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.sequences.rows()
    }

    /// Whether nothing was decoded into it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn key(&self, row: usize) -> SequenceKey {
        self.sequences.keys[row]
    }

    /// Where the example of a row came from.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn source(&self, row: usize) -> Option<&str> {
        self.sequences.sources[row].as_deref()
    }

    /// Labels of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> LabelsView<'_> {
        LabelsView {
            input_ids: self.sequences.input_ids.row(row),
            positions: self.sequences.positions.row(row),
            counts: self.counts.row(row),
            token_ids: self.token_ids.row(row),
            log_probs: self.log_probs.row(row),
            sample_counts: self.sample_counts.row(row),
            log_sum_exp: self.log_sum_exp.row(row),
            tail_log_mass: self.tail_log_mass.row(row),
            entropy: self.entropy.row(row),
            gold_log_prob: self.gold_log_prob.row(row),
            log_partitions: self.log_partitions.iter().map(|column| column.row(row)).collect(),
            tail_log_masses: self.tail_log_masses.iter().map(|column| column.row(row)).collect(),
        }
    }

    /// A copy of a row.
    pub(crate) fn labels(&self, row: usize) -> SequenceLabels {
        self.row(row).to_labels(self.sequences.sources[row].clone())
    }
}

/// Decodes a column that a plan may lack.
fn optional<T: Word>(
    pages: &mut PageDecoder,
    chunks: &[Chunk<'_>],
    place: Option<usize>,
    list: &mut List<T>,
) -> Result<(), Error> {
    match place {
        Some(place) => pages.list_into(chunks[place], list),
        None => {
            list.clear();
            Ok(())
        }
    }
}
