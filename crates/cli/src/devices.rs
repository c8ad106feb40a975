//! Several places where tensors live, one for each copy of a teacher.

use burn::tensor::Device;

use crate::device::{self, DeviceError};

/// All devices that `names` names: `cuda:0`, `cuda` for all GPUs of this machine, or several names with commas between them, as
/// `cuda:0,1`. Every name is a device of its own, `cpu,cpu` two that share the processor.
///
/// # Errors
/// As [`device::open`].
pub(crate) fn open(names: &str) -> Result<Vec<Device>, DeviceError> {
    let names = if names == "cuda" { all_gpus()? } else { names.to_owned() };
    let is_index = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut is_gpu = false;
    names
        .split(',')
        .map(|name| {
            let full = if is_gpu && is_index(name) { format!("cuda:{name}") } else { name.to_owned() };
            is_gpu = full.starts_with("cuda:");
            device::open(&full)
        })
        .collect()
}

/// Names of all GPUs, of which there is one at least.
#[cfg(feature = "cuda")]
fn all_gpus() -> Result<String, DeviceError> {
    let count = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
    let names: Vec<String> = (0..count.max(1)).map(|index| format!("cuda:{index}")).collect();
    Ok(names.join(","))
}

#[cfg(not(feature = "cuda"))]
fn all_gpus() -> Result<String, DeviceError> {
    Ok("cuda:0".to_owned()) // which says that this build has none
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_are_several_devices() {
        assert_eq!(open("cpu").map(|devices| devices.len()).ok(), Some(1));
        assert_eq!(open("cpu,cpu").ok(), Some(vec![Device::flex(), Device::flex()]));
        for names in ["cpu,", "0,1", "cpu,1", ",cpu"] {
            let error = open(names).expect_err("refused").to_string();
            assert!(error.contains("expected `cpu` or `cuda:<index>`"), "{names}: {error}");
        }
        let error = open("cuda:60000,60001").expect_err("refused").to_string();
        assert!(error.starts_with("device `cuda:60000`: "), "{error}");
    }
}
