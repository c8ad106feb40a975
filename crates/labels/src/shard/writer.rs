//! Writes one Parquet file, hashing it on the way.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor};
use sha2::{Digest, Sha256};

use super::reader::ShardReader;
use super::schema::{ROW_GROUP_HASHES, ShardSchema};
use crate::host::{Links, TempFile, hexadecimal, regular, write_failed};
use crate::parquet::{Column, EncodedColumn, encode};
use crate::values::{Error, failed};

/// A Parquet file that is being written to a temporary name.
pub(crate) struct ShardFile {
    temp: TempFile,
    writer: SerializedFileWriter<Hashing>,
    row_groups: Vec<String>,
    schema: SchemaDescPtr,
}

/// A Parquet file that is complete and synced, still under its temporary name.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    pub(crate) temp: TempFile,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
    pub(crate) sha256: String,
}

impl WrittenFile {
    /// Copies a file into the dataset at `root`, hashing it on the way.
    pub(crate) fn copy(root: &Path, from: &Path) -> Result<Self, Error> {
        let (temp, file) = TempFile::create(root)?;
        let mut hashing = Hashing::new(file);
        io::copy(&mut regular::open(from, Links::Refused)?, &mut hashing)?;
        hashing.finish(temp)
    }
}

impl ShardFile {
    /// Starts a file in the dataset at `root`.
    pub(crate) fn create(root: &Path, schema: &ShardSchema) -> Result<Self, Error> {
        let (temp, file) = TempFile::create(root)?;
        let properties = Arc::new(properties(schema));
        let mut writer = SerializedFileWriter::new(Hashing::new(file), schema.message.clone(), properties)
            .map_err(failed)?;
        writer.flush()?;
        writer.inner_mut().row_group.reset();
        let schema = Arc::new(SchemaDescriptor::new(schema.message.clone()));
        Ok(Self { temp, writer, row_groups: Vec::new(), schema })
    }

    /// What [`encode`] needs of the schema.
    pub(crate) fn schema(&self) -> SchemaDescPtr {
        self.schema.clone()
    }

    /// Encodes a row group, its columns in the order of the schema, and writes it.
    pub(crate) fn write_group(&mut self, columns: &[Column<'_>]) -> Result<(), Error> {
        self.append(encode(&self.schema, columns)?)
    }

    /// Writes a row group that was encoded before.
    pub(crate) fn append(&mut self, columns: Vec<EncodedColumn>) -> Result<(), Error> {
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for EncodedColumn { bytes, close } in columns {
            group.append_column(&Bytes::from(bytes), close).map_err(failed)?;
        }
        group.close().map_err(failed)?;
        self.end_group()
    }

    /// Writes a row group of another file with the same columns, byte for byte.
    pub(crate) fn copy_group(&mut self, from: &ShardReader, index: usize) -> Result<(), Error> {
        let mut group = self.writer.next_row_group().map_err(failed)?;
        from.copy_chunks(index, &mut group)?;
        group.close().map_err(failed)?;
        self.end_group()
    }

    fn end_group(&mut self) -> Result<(), Error> {
        self.writer.flush()?;
        let hasher = &mut self.writer.inner_mut().row_group;
        self.row_groups.push(hasher.finalize().to_hex().to_string());
        hasher.reset();
        Ok(())
    }

    /// Writes the footer and syncs.
    pub(crate) fn finish(mut self) -> Result<WrittenFile, Error> {
        let hashes = serde_json::to_string(&self.row_groups).expect("a list of texts");
        self.writer.append_key_value_metadata(KeyValue::new(ROW_GROUP_HASHES.to_owned(), hashes));
        self.writer.into_inner().map_err(failed)?.finish(self.temp)
    }
}

impl std::fmt::Debug for ShardFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardFile").field("temp", &self.temp).finish_non_exhaustive()
    }
}

/// A file that hashes what is written to it: whole, and since the start of the row group.
struct Hashing {
    file: fs_err::File,
    bytes: u64,
    blake3: blake3::Hasher,
    sha256: Sha256,
    row_group: blake3::Hasher,
    /// Not hashed and written yet: the hashes are faster for much at a time.
    pending: Vec<u8>,
}

/// What is hashed and written at a time.
const WRITE_BYTES: usize = 256 << 10;

impl Hashing {
    fn new(file: fs_err::File) -> Self {
        let (blake3, row_group) = (blake3::Hasher::new(), blake3::Hasher::new());
        Self { file, bytes: 0, blake3, sha256: Sha256::new(), row_group, pending: Vec::new() }
    }

    /// Syncs what was written.
    fn finish(mut self, temp: TempFile) -> Result<WrittenFile, Error> {
        self.flush()?;
        self.file.sync_all()?;
        Ok(WrittenFile {
            temp,
            bytes: self.bytes,
            blake3: self.blake3.finalize().to_hex().to_string(),
            sha256: hexadecimal(&self.sha256.finalize()),
        })
    }
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(buffer);
        if self.pending.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.file.write_all(&pending).map_err(|error| write_failed(&error, pending.len()))?;
        self.blake3.update(&pending);
        self.sha256.update(&pending);
        self.row_group.update(&pending);
        self.bytes += u64::try_from(pending.len()).expect("a length fits 64 bits");
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }
}

/// The columns come encoded, see `page_writer.rs`.
fn properties(schema: &ShardSchema) -> WriterProperties {
    let key_values = schema
        .key_values
        .iter()
        .map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone()))
        .collect();
    WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_key_value_metadata(Some(key_values))
        .build()
}
