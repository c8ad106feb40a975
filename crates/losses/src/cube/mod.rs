//! The head on devices of CubeCL: a kernel makes everything of a chunk's logits, and only its results are read.
//!
//! Legend: N rows, C rows of one chunk, D model width, V vocabulary, W words of a row's result.

mod kernel;
mod layout;
mod product;
mod radix;
mod result;
mod row;

use std::ops::Range;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous_aligned;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::{CubeCount, CubeDim, tensor_vector_size_parallel};
use rayon::prelude::*;

use crate::error::HeadError;
use crate::labels::{HeadLabels, HeadOptions};
pub(crate) use product::wide_product;

use layout::{Layout, UNITS};
use result::Fault;

/// Whether the kernel runs there.
pub(crate) fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// What a backend does with logits.
#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub(crate) trait HeadOps: Backend {
    /// The results of the rows, `[C, W]`.
    ///
    /// # Shapes
    /// `logits` `[C, V]`, `rows` `[C, 2]`: gold token, and the bits of where draws begin; `inverse_temperatures` `[T]`, or `[1]`
    /// without any.
    #[fusion(meta = |_, rows: &burn::backend::fusion::custom::TensorSpec, _, layout: &Layout, _| {
        burn::backend::fusion::custom::TensorSpec::new([rows.shape[0], layout.words()].into(), DType::I32)
    })]
    fn head_results(
        logits: FloatTensor<Self>,
        rows: IntTensor<Self>,
        inverse_temperatures: FloatTensor<Self>,
        layout: Layout,
        scale: f32,
    ) -> IntTensor<Self>;
}

impl HeadOps for CubeBackend {
    fn head_results(
        logits: FloatTensor<Self>,
        rows: IntTensor<Self>,
        inverse_temperatures: FloatTensor<Self>,
        layout: Layout,
        scale: f32,
    ) -> IntTensor<Self> {
        let (logits, rows) = (into_contiguous_aligned(logits), into_contiguous(rows));
        let [height, _] = logits.shape().dims();
        let client = logits.client.clone();
        let found = empty_device_contiguous_dtype(
            client.clone(),
            logits.device.clone(),
            Shape::from([height, layout.words()]),
            DType::I32,
        );
        let lanes = tensor_vector_size_parallel(
            client.io_optimized_vector_sizes(logits.dtype.size()),
            logits.meta.shape(),
            logits.meta.strides(),
            1,
        );
        let dtype = dtype_to_storage_type(logits.dtype);
        let word = |count: usize| u32::try_from(count).expect("at most V, which is below 2^31");
        kernel::head_kernel::launch(
            &client,
            CubeCount::Static(word(height), 1, 1),
            CubeDim::new_1d(word(UNITS)),
            lanes,
            logits.into_tensor_arg(),
            rows.into_tensor_arg(),
            into_contiguous(inverse_temperatures).into_tensor_arg(),
            found.clone().into_tensor_arg(),
            scale,
            word(layout.kept),
            layout.draws,
            word(layout.temperatures),
            dtype,
        );
        found
    }
}

/// Labels of `[N, V]` logits, of which `logits` makes some rows at a time, on a device where [`runs_on`] holds. All chunks are
/// sent to the device before the first result is read.
pub(crate) fn label(
    [rows, vocabulary]: [usize; 2],
    device: &Device,
    logits: impl Fn(Range<usize>) -> Tensor<2>,
    gold: &[i32],
    uniforms: &[f64],
    options: &HeadOptions<'_>,
) -> Result<HeadLabels, HeadError> {
    let mut labels = HeadLabels::without_rows(options);
    if rows == 0 {
        return Ok(labels);
    }
    let layout = Layout::of(options, vocabulary);
    let inverse: Vec<f32> = options.temperatures.iter().map(|temperature| 1.0 / temperature).collect();
    // A tensor has at least one number.
    let inverse = if inverse.is_empty() { vec![1.0] } else { inverse };
    let inverse = Tensor::<1>::from_data(inverse.as_slice(), (device, DType::F32));
    let chunk = options.rows_per_chunk.min(most_rows(vocabulary));
    let results = (0..rows).step_by(chunk).map(|start| {
        let end = (start + chunk).min(rows);
        let inputs: Vec<i32> = (start..end).flat_map(|row| [gold[row], beginning(uniforms, row)]).collect();
        let inputs = TensorData::new(inputs, [end - start, 2]);
        let inputs = Tensor::<2, Int>::from_data(inputs, (device, DType::I32));
        let found = Dispatch::head_results(
            logits(start..end).into_dispatch(),
            inputs.into_dispatch(),
            inverse.clone().into_dispatch(),
            layout,
            options.logit_scale,
        );
        Tensor::<2, Int>::from_dispatch(found)
    });
    let results = Tensor::cat(results.collect(), 0);
    let results = results.try_into_data().map_err(|error| HeadError::Device(error.to_string()))?;
    let results = results.as_slice::<i32>().expect("the results are I32");
    let rows = results.par_chunks_exact(layout.words()).map(|row| result::labels(row, layout, options));
    for (row, found) in rows.collect::<Vec<_>>().into_iter().enumerate() {
        labels.push(found.map_err(|fault| match fault {
            Fault::NonFinite => HeadError::NonFinite { row },
            Fault::NotWritten => HeadError::Device("its kernel did not run".to_owned()),
        })?);
    }
    Ok(labels)
}

/// Rows of one launch: what WebGPU allows along an axis, and no index beyond 31 bits.
fn most_rows(vocabulary: usize) -> usize {
    const MOST: usize = 65_535;
    const INDICES: usize = 1 << 31;
    MOST.min((INDICES / vocabulary).max(1))
}

/// The bits of where the draws of a row begin, in 0..1 after its rounding too.
fn beginning(uniforms: &[f64], row: usize) -> i32 {
    const BELOW_ONE: f32 = 1.0 - f32::EPSILON / 2.0;
    let uniform = uniforms.get(row).map_or(0.0, |&uniform| uniform as f32);
    uniform.min(BELOW_ONE).to_bits().cast_signed()
}
