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
use crate::parquet::{Column, EncodedColumn, encode, failed};
use crate::values::Error;

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

/// The columns come encoded, see `parquet/encoder.rs`.
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

#[cfg(test)]
mod tests {
    use parquet::basic::Compression;
    use parquet::file::metadata::ParquetMetaDataReader;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::host::durable::create_folders;
    use crate::parquet::{Chunk, List, PageDecoder, Scratch};
    use crate::shard::schema::{COUNTS, INPUT_IDS, SOURCE, TOKEN_IDS};
    use crate::values::SequenceKey;

    /// The first of floats.
    const LOG_PROBS: usize = TOKEN_IDS + 1;

    fn chunk(bytes: &[u8], compression: Compression) -> Chunk<'_> {
        Chunk { bytes, compression }
    }

    /// Damage behind all hashes: any answer is fine but a panic or a large allocation.
    #[test]
    fn damaged_pages_do_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        create_folders(dir.path(), &["_softshard/tmp"]).unwrap();
        let columns = "required fixed_len_byte_array(16) sequence_key; optional binary source (STRING);";
        let list = |kind: &str, name: &str| {
            format!("required group {name} (LIST) {{ repeated group list {{ required {kind} element; }} }}")
        };
        let lists: String =
            ["input_ids", "positions", "counts", "token_ids"].map(|name| list("int32", name)).concat();
        let message = format!("message m {{ {columns} {lists} {} }}", list("float", "log_probs"));
        let message = Arc::new(parse_message_type(&message).unwrap());
        let schema = ShardSchema { message, key_values: Vec::new() };
        let mut file = ShardFile::create(dir.path(), &schema).unwrap();
        let ints = List { values: (0..100).map(|value| value % 7).collect(), ends: vec![1, 50, 100] };
        let floats = List { values: vec![0.5; 100], ends: vec![1, 50, 100] };
        let texts = [Some("one".to_owned()), None, Some("three".to_owned())];
        let keys = [SequenceKey([7; 16]); 3];
        let columns = [
            Column::Keys(&keys),
            Column::Texts(&texts),
            Column::Ints(&ints),
            Column::Ints(&ints),
            Column::Counts(&ints),
            Column::NoisyInts(&ints),
            Column::NoisyFloats(&floats),
        ];
        file.write_group(&columns).unwrap();
        let written = file.finish().unwrap();
        let bytes = fs_err::read(written.temp.path()).unwrap();
        let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
        let footer = &bytes[bytes.len() - 8 - usize::try_from(footer).unwrap()..bytes.len() - 8];
        let metadata = ParquetMetaDataReader::decode_metadata(footer).unwrap();

        let decoder = || PageDecoder::new(3, 1 << 16, Scratch::default()).unwrap();
        for (index, column) in metadata.row_group(0).columns().iter().enumerate() {
            let (start, size) = column.byte_range();
            let start = usize::try_from(start).unwrap();
            let good = &bytes[start..start + usize::try_from(size).unwrap()];
            let zstd = column.compression();
            match index {
                SOURCE => assert_eq!(decoder().texts(chunk(good, zstd)).unwrap(), texts),
                INPUT_IDS | COUNTS => assert_eq!(decoder().list::<i32>(chunk(good, zstd)).unwrap(), ints),
                LOG_PROBS => assert_eq!(decoder().list::<f32>(chunk(good, zstd)).unwrap(), floats),
                _ => {}
            }
            if index == LOG_PROBS {
                for row in [0..1, 1..50, 50..100] {
                    assert_eq!(
                        decoder().list_row::<f32>(chunk(good, zstd), &row).unwrap(),
                        vec![0.5; row.len()]
                    );
                }
                for other in [0..2, 2..50, 1..49, 1..51, 50..101] {
                    decoder().list_row::<f32>(chunk(good, zstd), &other).unwrap_err();
                }
            }
            for bit in 0..8 * good.len() {
                let mut bad = good.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                drop(decoder().keys(chunk(&bad, zstd)));
                drop(decoder().texts(chunk(&bad, zstd)));
                drop(decoder().list::<i32>(chunk(&bad, zstd)));
                drop(decoder().list_row::<i32>(chunk(&bad, zstd), &(1..50)));
                drop(decoder().list::<f32>(chunk(&bad[..bad.len() - 1], zstd)));
            }
        }
    }
}
