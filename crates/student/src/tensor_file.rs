//! A safetensors file of 32-bit matrices, written and read one tensor at a time: of none of them more is in memory.

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use fs_err as fs;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

/// Numbers that are between memory and disk at a time.
const NUMBERS_AT_ONCE: usize = 1 << 16;
const BYTES: usize = size_of::<f32>();
/// What the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// Writes and syncs a file; its BLAKE3.
///
/// # Errors
/// The file system refuses, or a number is not finite: a run that goes on from it would learn nothing.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor<2>)]) -> Result<String> {
    // As the safetensors crate orders them.
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| name);
    let mut end = 0;
    let info = |(name, tensor): &&(String, Tensor<2>)| {
        let (begin, shape) = (end, tensor.dims().to_vec());
        end += BYTES * shape.iter().product::<usize>();
        (name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets: (begin, end) })
    };
    let header = Metadata::new(None, sorted.iter().map(info).collect())?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let (mut file, mut hasher) = (fs::File::create(path)?, blake3::Hasher::new());
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes)
    };
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    let mut piece = Vec::with_capacity(BYTES * NUMBERS_AT_ONCE);
    for (name, tensor) in sorted {
        let data = tensor.to_data();
        let values = data.as_slice::<f32>().expect("what learns is f32");
        if let Some(found) = values.iter().find(|value| !value.is_finite()) {
            bail!(
                "`{name}`: expected finite numbers, found {found}\nhint: train with a lower `learning_rate` into another output"
            );
        }
        for values in values.chunks(NUMBERS_AT_ONCE) {
            piece.clear();
            piece.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            write(&piece)?;
        }
    }
    file.sync_all()?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The BLAKE3 of a file, which is not in memory meanwhile.
///
/// # Errors
/// It is not there, or cannot be read.
pub(crate) fn blake3_of(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// A file whose tensors are not in memory.
pub(crate) struct TensorFile {
    file: fs::File,
    header: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

impl TensorFile {
    /// Opens a file whose hash was checked.
    ///
    /// # Errors
    /// It is not there, or no safetensors file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = fs::File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= LONGEST_HEADER, "a header of {length} bytes");
        let mut header = Vec::new();
        (&mut file).take(length).read_to_end(&mut header)?;
        Ok(Self { file, header: serde_json::from_slice(&header)?, start: 8 + length })
    }

    /// One of its tensors.
    ///
    /// # Errors
    /// It has none of this name, or one that is no matrix of 32-bit floats, or cannot be read.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor<2>> {
        let TensorInfo { dtype, shape, data_offsets } =
            self.header.info(name).with_context(|| format!("it has no tensor `{name}`"))?;
        let (Dtype::F32, &[rows, columns]) = (dtype, shape.as_slice()) else {
            bail!("`{name}`: expected two axes of F32, found {dtype} {shape:?}")
        };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + u64::try_from(data_offsets.0)?))?;
        let mut values = Vec::with_capacity(rows * columns);
        let mut piece = vec![0; BYTES * NUMBERS_AT_ONCE];
        while values.len() < rows * columns {
            let numbers = NUMBERS_AT_ONCE.min(rows * columns - values.len());
            let piece = &mut piece[..BYTES * numbers];
            file.read_exact(piece)?;
            values.extend(piece.as_chunks::<BYTES>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), device))
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn a_file_is_read_by_the_safetensors_crate_and_by_us() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("one.safetensors");
        let tensor = |rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|index| index as f32 * 0.5).collect();
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
        };
        let tensors = [("b".to_owned(), tensor(3, 50_000)), ("a".to_owned(), tensor(1, 5))];
        let hash = write(&path, &tensors).expect("it is written");
        let bytes = fs::read(&path).expect("it is there");
        assert_eq!(hash, blake3::hash(&bytes).to_hex().as_str());
        let theirs = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let file = TensorFile::open(&path).expect("the file that was written");
        for (name, tensor) in &tensors {
            assert_eq!(file.tensor(name, &Device::flex()).expect("it is there").to_data(), tensor.to_data());
            let view = theirs.tensor(name).expect("it is there");
            assert_eq!(view.shape(), tensor.dims());
            assert_eq!(view.data(), tensor.to_data().as_bytes());
        }
        let error = file.tensor("c", &Device::flex()).expect_err("there is none");
        assert!(error.to_string().contains("no tensor `c`"), "{error}");
        assert_eq!(blake3_of(&path).expect("it is there"), hash);
        let not_finite = [("nan".to_owned(), tensor(1, 5) * f32::NAN)];
        let error = write(&path, &not_finite).expect_err("no number");
        assert!(error.to_string().contains("`nan`: expected finite numbers, found NaN"), "{error}");
    }
}
