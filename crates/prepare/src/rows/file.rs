//! The files of a recipe, opened by what they hold: JSONL, a JSON array, Parquet or text, packed or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::array::Items;
use super::documents::Documents;
use super::kind::{Foreign, HEAD_BYTES, Kind, kind};
use super::lines::Lines;
use super::parquet::Table;
use super::reading::{Body, Raw};
use super::{Place, pipe};
use crate::{DataConfig, Error};

const BUFFER_BYTES: usize = 1 << 20;

/// The files of a recipe, which can be read as often as needed.
pub(crate) struct Inputs {
    files: Vec<Input>,
}

struct Input {
    path: Arc<PathBuf>,
    /// What a pipe gave, in a file without a name.
    spooled: Option<File>,
}

impl Inputs {
    /// Looks at all files; a pipe is read now, into a file without a name in the folder `spool`, or refused.
    ///
    /// # Errors
    /// [`Error::File`] for what is no file; [`Error::Interrupted`] where `stop` was set while a pipe was read.
    pub(crate) fn open(data: &DataConfig, spool: Option<&Path>, stop: &AtomicBool) -> Result<Self, Error> {
        let mut pipes = Vec::new();
        let mut files = Vec::new();
        for path in data.files() {
            let path = Arc::new(path.clone());
            let found = fs_err::metadata(path.as_path()).map_err(not_there)?;
            let refuse = |problem: &str, hint: &'static str| Err(Error::file(&path, problem, hint));
            let kind = found.file_type();
            let mut spooled = None;
            if kind.is_dir() {
                return Err(folder(&path));
            } else if kind.is_fifo() {
                let Some(folder) = spool else {
                    let hint = "only `prepare` keeps what a pipe gives: write it to a file";
                    return refuse("expected a file, found a pipe", hint);
                };
                if pipes.contains(&(found.dev(), found.ino())) {
                    return refuse("expected each pipe once, found it twice", "a pipe is read only once");
                }
                pipes.push((found.dev(), found.ino()));
                spooled = Some(pipe::spool(&path, folder, stop)?);
            } else if !kind.is_file() {
                let hint = "name a file, or a pipe such as /dev/stdin with something behind it";
                return refuse("expected a file or a pipe, found a device", hint);
            }
            files.push(Input { path, spooled });
        }
        Ok(Self { files })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn path(&self, file: usize) -> &Path {
        &self.files[file].path
    }

    pub(super) fn source<'a>(&self, file: usize, data: &'a DataConfig) -> Result<Source<'a>, Error> {
        self.files[file].source(data)
    }
}

fn not_there(error: io::Error) -> Error {
    let hint = "paths of a recipe are from its folder";
    io::Error::new(error.kind(), format!("data: {error}\nhint: {hint}")).into()
}

fn folder(path: &Path) -> Error {
    let names = fs_err::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    let saved = names.iter().any(|name| name == "dataset_info.json" || name == "dataset_dict.json");
    let hint = if saved {
        "this was saved by `save_to_disk`: write it with `to_parquet(\"rows.parquet\")`, and name that file"
    } else {
        "name its files, one path or a list"
    };
    names.truncate(3);
    let problem = format!(
        "expected a file, found a folder of {}",
        if names.is_empty() { "nothing".into() } else { names.join(", ") }
    );
    Error::file(path, problem, hint)
}

impl Input {
    fn file(&self) -> Result<fs_err::File, Error> {
        let Some(spooled) = &self.spooled else {
            return fs_err::File::open(self.path.as_path()).map_err(not_there);
        };
        let mut file = spooled.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(fs_err::File::from_parts(file, self.path.as_path()))
    }

    fn source<'a>(&self, data: &'a DataConfig) -> Result<Source<'a>, Error> {
        let is_text = data.is_text();
        let refuse = |Foreign { found, hint }, packed: Option<&str>| {
            let within = packed.map(|packed| format!(" in {packed}")).unwrap_or_default();
            let expected = if is_text { "text" } else { "JSONL, a JSON array or Parquet" };
            Error::file(&self.path, format!("expected {expected}, found {found}{within}"), hint)
        };
        let mut stream = Stream::new(self.file()?, None);
        let mut found = kind(&stream.head(&self.path)?, is_text).map_err(|foreign| refuse(foreign, None))?;
        if let Kind::Gzip | Kind::Zstd = found {
            stream = stream.unpack(found)?;
            let packed = stream.packed;
            found = kind(&stream.head(&self.path)?, is_text).map_err(|foreign| refuse(foreign, packed))?;
            let twice = match found {
                Kind::Gzip => "gzip",
                Kind::Zstd => "zstd",
                Kind::Parquet => "Parquet",
                Kind::Array | Kind::Lines => "",
            };
            if !twice.is_empty() {
                let hint = "unpack it first; Parquet files are packed inside";
                return Err(refuse(Foreign { found: twice.into(), hint }, packed));
            }
        }
        let path = Arc::clone(&self.path);
        Ok(match found {
            Kind::Parquet => {
                let file = self.file()?.into_parts().0;
                Source::Table(Box::new(Table::open(file, path, &data.ignore_columns)?))
            }
            Kind::Array => Source::Items(Items::new(stream, path)),
            _ if is_text => text(Lines::new(stream, path), &data.document_separator)?,
            _ => Source::Lines(Lines::new(stream, path), None),
        })
    }
}

/// Rows with a column `text`, if the first line is one; otherwise documents as they stand.
fn text(mut lines: Lines, separator: &str) -> Result<Source<'_>, Error> {
    let first = lines.next_line().transpose()?.unwrap_or_default();
    let row: Option<serde_json::Value> =
        first.trim_start().starts_with('{').then(|| serde_json::from_str(&first).ok()).flatten();
    if row.is_some_and(|row| row.get("text").is_some_and(serde_json::Value::is_string)) {
        return Ok(Source::Lines(lines, Some(first)));
    }
    Ok(Source::Documents(Documents::new(lines, first, separator)))
}

/// A file's bytes, unpacked.
pub(super) struct Stream {
    pub(super) reader: Box<dyn BufRead + Send>,
    /// What they were packed with.
    pub(super) packed: Option<&'static str>,
}

impl Stream {
    fn new(reader: impl Read + Send + 'static, packed: Option<&'static str>) -> Self {
        Self { reader: Box::new(BufReader::with_capacity(BUFFER_BYTES, reader)), packed }
    }

    /// The first bytes, which stay there.
    fn head(&mut self, path: &Arc<PathBuf>) -> Result<Vec<u8>, Error> {
        let mut head = Vec::new();
        let limit = u64::try_from(HEAD_BYTES).expect("a constant");
        let place = Place { path: Arc::clone(path), line: 1, unit: "line" };
        self.reader
            .by_ref()
            .take(limit)
            .read_to_end(&mut head)
            .map_err(|error| unreadable(self.packed, error, &place))?;
        let rest = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        self.reader = Box::new(Cursor::new(head.clone()).chain(rest));
        Ok(head)
    }

    fn unpack(self, kind: Kind) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Gzip => Self::new(flate2::bufread::MultiGzDecoder::new(self.reader), Some("gzip")),
            _ => Self::new(zstd::stream::read::Decoder::with_buffer(self.reader)?, Some("zstd")),
        })
    }

    pub(super) fn unreadable(&self, error: io::Error, place: &Place) -> Error {
        unreadable(self.packed, error, place)
    }
}

/// An error while reading: of the disk, or of what is packed.
pub(super) fn unreadable(packed: Option<&'static str>, error: io::Error, place: &Place) -> Error {
    let Some(packed) = packed else { return error.into() };
    let problem = format!("expected whole {packed} data, found them damaged or cut off: {error}");
    place.error(problem, "fetch or write the file again")
}

/// An open file, from which rows come.
pub(super) enum Source<'a> {
    /// With a line that was read already.
    Lines(Lines, Option<String>),
    Items(Items),
    Table(Box<Table>),
    Documents(Documents<'a>),
}

impl Source<'_> {
    /// The next row; nothing yet where something was read that is none, as a blank line; `None` at the end.
    pub(super) fn advance(&mut self) -> Option<Result<Option<Raw>, Error>> {
        match self {
            Self::Lines(lines, first) => {
                let line = first.take().map(Ok).or_else(|| lines.next_line())?;
                let raw = |line| Raw { place: lines.place(), body: Body::Json(line) };
                Some(line.map(|line| (!line.trim_ascii().is_empty()).then(|| raw(line))))
            }
            Self::Items(items) => {
                let item = items.next_item()?;
                Some(item.map(|item| Some(Raw { place: items.place(), body: Body::Json(item) })))
            }
            Self::Table(table) => Some(table.next_row()?.map(Some)),
            Self::Documents(documents) => documents.advance(),
        }
    }
}
