//! Rows out of DistillKit's captures.

use std::path::{Path, PathBuf};

use super::columns::{Cell, ForeignFile};
use super::distillkit::Decoder;
use super::rows::{ForeignPosition, ForeignRow, Rows, or_bad};
use super::tables::{Files, small};
use crate::values::{Error, quoted};

/// Columns of a DistillKit capture; those from the fourth on may lack.
const CAPTURE: [&str; 5] =
    ["input_ids", "bytepacked_indices", "compressed_logprobs", "attention_mask", "labels"];

/// Refuses the layouts of DistillKit that hold no log-probabilities, or others than captures do.
pub(crate) fn check_capture(files: &[PathBuf]) -> Result<(), Error> {
    let has = |path: &Path, name: &str| ForeignFile::open(path, &[name.to_owned()], &[]).is_ok();
    for path in files {
        let legacy = ["packed_indices", "exact_values", "coeffs"];
        if legacy.iter().all(|name| has(path, name)) {
            let hint =
                "its values are logits without their log-sum-exp: capture again with `logprob_compressor`";
            let found = "the legacy columns packed_indices, exact_values and coeffs";
            return Err(Error::bad(quoted(path), "a capture with log-probabilities", found).hint(hint));
        }
        if has(path, "top_values") {
            let hint = "import it with --from parquet --map input_ids=input_ids,token_ids=token_ids,log_probs=top_values";
            return Err(Error::bad(quoted(path), "a compressed capture", "plain top_values").hint(hint));
        }
    }
    Ok(())
}

/// Rows of a DistillKit capture; packed rows are cut into their documents.
pub(crate) fn captured<'a>(files: &'a [PathBuf], decoder: Decoder<'a>) -> Rows<'a> {
    let names = CAPTURE.map(str::to_owned).to_vec();
    let mut files = Files { paths: files.iter(), names, optional: &CAPTURE[3..], open: None };
    let mut documents = Vec::new().into_iter();
    Box::new(std::iter::from_fn(move || {
        loop {
            if let Some(document) = documents.next() {
                return Some(Ok(Ok(document)));
            }
            let found = files.next().and_then(|found| {
                let Some((file, row)) = found else { return Ok(None) };
                let place = format!("{} row {row}", file.place);
                let name = file.name.clone();
                let cells = Capture::cells(file)?;
                let capture = Capture::new(cells, &place);
                let source = format!("{name}:{row}");
                or_bad(capture.and_then(|capture| capture.documents(&place, &source, &decoder))).map(Some)
            });
            match found {
                Ok(None) => return None,
                Ok(Some(Ok(rows))) => documents = rows.into_iter(),
                Ok(Some(Err(bad))) => return Some(Ok(Err(bad))),
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

/// The cells of a row of a capture.
struct Capture {
    input_ids: Vec<i32>,
    ids: Cell<i64>,
    values: Cell<i64>,
    /// 0 for padding; in packed rows the number of the document.
    mask: Option<Cell<i64>>,
    labels: Option<Cell<i64>>,
}

impl Capture {
    /// The columns of a row, all of them, so that the next row begins where it should.
    fn cells(file: &mut ForeignFile) -> Result<[Option<Cell<i64>>; CAPTURE.len()], Error> {
        let mut cells = [const { None }; CAPTURE.len()];
        for (column, cell) in cells.iter_mut().enumerate() {
            *cell = file.ints(column)?;
        }
        Ok(cells)
    }

    fn new(cells: [Option<Cell<i64>>; CAPTURE.len()], place: &str) -> Result<Self, Error> {
        for (name, cell) in CAPTURE.iter().zip(&cells) {
            cell.iter().try_for_each(|cell| cell.check_nulls(name)).map_err(|error| error.within(place))?;
        }
        let lacks = || Error::bad(place, "lists in lists of bytes", "other columns");
        let [input_ids, ids, values, mask, labels] = cells;
        let (ids, values) = (ids.ok_or_else(lacks)?, values.ok_or_else(lacks)?);
        let input_ids = small(&input_ids.ok_or_else(lacks)?.values, "input_ids");
        let this =
            Self { input_ids: input_ids.map_err(|error| error.within(place))?, ids, values, mask, labels };
        let counts = [&this.ids, &this.values].map(|cell| cell.lists().map(|lists| lists.len()));
        let [Some(ids), Some(values)] = counts else { return Err(lacks()) };
        this.check(ids, values).map_err(|error| error.within(place))?;
        Ok(this)
    }

    /// Checks how long the lists are.
    fn check(&self, ids: usize, values: usize) -> Result<(), Error> {
        let length = self.input_ids.len();
        if ids != values || !(length.saturating_sub(1)..=length).contains(&ids) {
            let expected = format!("entries at {} or {length} places", length.saturating_sub(1));
            let found = format!("{ids} and {values}");
            return Err(Error::bad("bytepacked_indices and compressed_logprobs", expected, found));
        }
        for (column, cell) in [("attention_mask", &self.mask), ("labels", &self.labels)] {
            if let Some(cell) = cell.as_ref().filter(|cell| cell.values.len() != length) {
                let place = format!("column `{column}`");
                return Err(Error::bad(place, format_args!("{length} values"), cell.values.len()));
            }
        }
        Ok(())
    }

    /// The number of the document that a token belongs to.
    fn document(&self, token: usize) -> i64 {
        self.mask.as_ref().map_or(1, |mask| mask.values[token])
    }

    /// Whether the entries at a token describe the next one of the same document, for which the loss counts.
    fn describes_next(&self, token: usize) -> bool {
        let next = token + 1;
        next < self.input_ids.len()
            && self.document(next) == self.document(token)
            && self.labels.as_ref().is_none_or(|labels| labels.values[next] != -100)
    }

    /// A row for each document: the teacher saw none together with another.
    fn documents(&self, place: &str, source: &str, decoder: &Decoder<'_>) -> Result<Vec<ForeignRow>, Error> {
        let mut rows: Vec<ForeignRow> = Vec::new();
        let mut lists = self.ids.lists().into_iter().flatten().zip(self.values.lists().into_iter().flatten());
        let mut start = 0;
        for (token, id) in self.input_ids.iter().enumerate() {
            let entries = lists.next();
            if token > 0 && self.document(token) != self.document(token - 1) {
                start = token;
            }
            if self.document(token) == 0 {
                continue; // padding
            }
            if token == start {
                let source = match self.mask {
                    Some(_) => format!("{source}:{token}"),
                    None => source.to_owned(),
                };
                let place = place.to_owned();
                rows.push(ForeignRow { place, source, input_ids: Vec::new(), positions: Vec::new() });
            }
            let row = rows.last_mut().expect("pushed at its start");
            row.input_ids.push(*id);
            let Some((ids, values)) = entries.filter(|_| self.describes_next(token)) else { continue };
            let decoded = bytes("bytepacked_indices", ids).and_then(|ids| {
                let values = bytes("compressed_logprobs", values)?;
                decoder.entries(&ids, &values)
            });
            let entries = decoded.map_err(|error| error.within(format_args!("{place} place {token}")))?;
            let position = token + 1 - start;
            row.positions.push(ForeignPosition { position, entries, ..ForeignPosition::default() });
        }
        Ok(rows)
    }
}

fn bytes(column: &str, cell: &[i64]) -> Result<Vec<u8>, Error> {
    let bytes: Option<Vec<u8>> = cell.iter().map(|byte| u8::try_from(*byte).ok()).collect();
    bytes.ok_or_else(|| Error::bad(format_args!("column `{column}`"), "bytes", "other numbers"))
}
