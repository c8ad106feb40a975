//! Where tensors live: the CPU, or a GPU if this build has the feature `cuda` or `wgpu` and the machine has one.

use burn::tensor::Device;
use softshard_model::OutOfMemory;

/// A device that this build or machine does not have: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DeviceError(String);

impl From<&OutOfMemory> for DeviceError {
    /// A device has no memory for a model, or for a step of its optimizer: what could be halved was halved before.
    fn from(error: &OutOfMemory) -> Self {
        Self(format!(
            "the device is out of memory: {error}\n\
             hint: weights take less with `residency = \"streamed\"` or `quantise`, training with `lora` or `checkpointing = \"layer\"`, all \
             of it with a smaller `max_tokens_per_batch`; finished shards and checkpoints are as they were"
        ))
    }
}

impl DeviceError {
    /// What a device's thread said when it lost a task.
    pub(crate) fn of_lost_task(reason: &str) -> Self {
        Self(format!(
            "device: a task of its thread was lost, and with it what was to be computed: {reason}\n\
             hint: finished work is kept; what failed may be a kernel that this device does not know, the compiler of kernels \
             (libnvrtc.so, of a CUDA release that the driver supports), or memory (try a smaller `max_tokens_per_batch`)"
        ))
    }
}

/// The device called `name`: `cpu`, `cuda:0` and so on, or `wgpu:0` and so on.
///
/// # Errors
/// There is no such device, or it cannot compute; the message says what is missing.
pub(crate) fn open(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    match name.split_once(':').map(|(kind, index)| (kind, index.parse())) {
        Some(("cuda", Ok(index))) => cuda(name, index),
        Some(("wgpu", Ok(index))) => wgpu(name, index),
        _ => Err(DeviceError(format!(
            "device `{name}`: expected `cpu`, `cuda:<index>` or `wgpu:<index>`\nhint: use `--device cpu`"
        ))),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _: u16) -> Result<Device, DeviceError> {
    Err(not_built(name, "cuda"))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(name: &str, _: u16) -> Result<Device, DeviceError> {
    Err(not_built(name, "wgpu"))
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn not_built(name: &str, feature: &str) -> DeviceError {
    DeviceError(format!(
        "device `{name}`: expected `cpu`, as this build has not the feature `{feature}`\n\
         hint: use `--device cpu`, or build with `--features softshard-cli/{feature}` (docs/gpu.md)"
    ))
}

/// Asks before the first tensor, whose panic would not say what is missing.
#[cfg(feature = "cuda")]
fn cuda(name: &str, index: u16) -> Result<Device, DeviceError> {
    use burn::tensor::DeviceType;

    let found = Device::enumerate(DeviceType::Cuda).into_vec();
    let count = found.len();
    let Some(device) = found.into_iter().nth(usize::from(index)) else {
        return Err(DeviceError(match count {
            0 => format!(
                "device `{name}`: this machine has no NVIDIA GPU, or no driver for it\n\
                 hint: `nvidia-smi` lists GPUs that work; or use `--device cpu`"
            ),
            _ => format!("device `{name}`: expected an index below {count}: this machine has {count} GPUs"),
        }));
    };
    let headers = cubecl::cuda::install::cuda_path().map(|path| path.join("include"));
    if !headers.as_ref().is_some_and(|folder| folder.join("cuda_bf16.h").exists()) {
        let looked =
            headers.map_or_else(|| "/usr/local/cuda".to_owned(), |folder| folder.display().to_string());
        return Err(DeviceError(format!(
            "device `{name}`: kernels are compiled on this machine, and CUDA's headers are not in `{looked}`\n\
             hint: install the CUDA toolkit (NVRTC and its headers), and set CUDA_PATH to its folder"
        )));
    }
    match computes(&device) {
        Ok(()) => Ok(device),
        Err(problem) => Err(DeviceError(format!(
            "device `{name}`: cannot compute: {problem}\n\
             hint: NVRTC (libnvrtc.so) must be where libraries are found, of a CUDA release that the driver supports"
        ))),
    }
}

#[cfg(feature = "wgpu")]
fn wgpu(name: &str, index: u16) -> Result<Device, DeviceError> {
    use burn::tensor::DeviceType;

    let found = Device::enumerate(DeviceType::Wgpu).into_vec();
    let count = found.len();
    let device = found.into_iter().nth(usize::from(index)).ok_or_else(|| {
        DeviceError(format!(
            "device `{name}`: expected an index below {count}: this machine has {count} GPUs with a driver for Vulkan, Metal or \
             DirectX 12\nhint: `vulkaninfo --summary` lists those of Vulkan; or use `--device cpu`"
        ))
    })?;
    computes(&device)
        .map_err(|problem| DeviceError(format!("device `{name}`: cannot compute: {problem}")))?;
    Ok(device)
}

/// One kernel, compiled and run: a missing library or a driver that is too old shows here.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn computes(device: &Device) -> Result<(), String> {
    use burn::tensor::Tensor;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let twice = || Tensor::<1>::ones([2], device).mul_scalar(2.0).try_into_data();
    let data = catch_unwind(AssertUnwindSafe(twice))
        .map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
        })?
        .map_err(|error| error.to_string())?;
    match data.try_to_vec::<f32>() {
        Ok(values) if values == [2.0, 2.0] => Ok(()),
        found => Err(format!("twice [1, 1] came out as {found:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cpu_or_a_gpu_with_an_index() {
        assert_eq!(open("cpu").ok(), Some(Device::flex()));
        for name in ["gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:70000", "rocm:0", ""] {
            let error = open(name).expect_err("refused").to_string();
            assert!(error.contains("expected `cpu`, `cuda:<index>` or `wgpu:<index>`"), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        // No machine has this many.
        for name in ["cuda:60000", "wgpu:60000"] {
            let error = open(name).expect_err("refused").to_string();
            assert!(error.starts_with(&format!("device `{name}`: ")), "{error}");
        }
    }
}
