//! How much memory is free, which `residency = "auto"` and batches that fit are decided by.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";
const KIB: u64 = 1024;

/// Bytes that may still be allocated on `device`; `None` where nobody says.
///
/// On the CPU the least of: what the kernel calls available, what the control groups of this process leave, and what the
/// limit of its address space leaves. On a GPU: what the driver calls free, and what Burn holds for reuse.
pub fn free_bytes(device: &Device) -> Option<u64> {
    if is_host(device) { host_free_bytes() } else { card_free_bytes(device) }
}

/// Bytes that this process holds now: its resident set on the CPU, what tensors use of Burn's pools on a GPU; `None` where
/// nobody says.
pub fn used_bytes(device: &Device) -> Option<u64> {
    if is_host(device) { status("VmRSS:") } else { pools(device).map(|[used, _]| used) }
}

/// The most bytes that this process held so far: its resident set on the CPU, what Burn's pools have reserved on a GPU;
/// `None` where nobody says.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    if is_host(device) { status("VmHWM:") } else { pools(device).map(|[_, reserved]| reserved) }
}

/// The kind of a device: `cpu`, `cuda` or `wgpu`.
pub fn device_kind(device: &Device) -> String {
    let kind = if is_host(device) {
        "cpu"
    } else if is_cuda(device) {
        "cuda"
    } else {
        "wgpu"
    };
    kind.to_owned()
}

#[cfg(feature = "cuda")]
fn is_cuda(device: &Device) -> bool {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().contains(&device.clone().without_autodiff())
}

#[cfg(not(feature = "cuda"))]
fn is_cuda(_: &Device) -> bool {
    false
}

fn is_host(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// A line of the kernel's account of this process.
fn status(key: &str) -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, key)
}

/// Bytes in use and bytes reserved.
fn pools(device: &Device) -> Option<[u64; 2]> {
    device.memory_pool_usage().map(|pools| [pools.bytes_in_use, pools.bytes_reserved])
}

#[cfg(feature = "cuda")]
fn card_free_bytes(device: &Device) -> Option<u64> {
    use burn::tensor::DeviceType;
    use cudarc::driver::CudaContext;

    let here = Device::enumerate(DeviceType::Cuda).into_vec();
    let index = here.iter().position(|card| card == device)?;
    let (free, _) = CudaContext::new(index).ok()?.mem_get_info().ok()?;
    let held = device.memory_pool_usage().map_or(0, |pools| {
        pools.bytes_reserved.saturating_sub(pools.bytes_in_use).saturating_sub(pools.bytes_padding)
    });
    Some(u64::try_from(free).ok()?.saturating_add(held))
}

#[cfg(not(feature = "cuda"))]
fn card_free_bytes(_: &Device) -> Option<u64> {
    None
}

fn host_free_bytes() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let available = read("/proc/meminfo").and_then(|text| kibibytes(&text, "MemAvailable:"));
    let in_groups = read("/proc/self/cgroup")
        .and_then(|text| groups(&text, Path::new(GROUPS)).iter().filter_map(|folder| left_in(folder)).min());
    let addresses = read("/proc/self/limits")
        .zip(read("/proc/self/status"))
        .and_then(|(limits, status)| addresses_left(&limits, &status));
    [available, in_groups, addresses].into_iter().flatten().min()
}

/// The value of a line such as `MemAvailable:   123 kB`, in bytes.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(KIB)
}

/// What `RLIMIT_AS` (`ulimit -v`) leaves; `None` if it is not set.
fn addresses_left(limits: &str, status: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let soft: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(soft.saturating_sub(kibibytes(status, "VmSize:")?))
}

/// Folders of the control groups that count this process's memory, and of all groups above them: any of them may have a
/// limit. Lines are `0::/path` (version 2) or `5:memory:/path` (version 1).
fn groups(text: &str, mount: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => mount.to_owned(),
            version_1 if version_1.split(',').any(|name| name == "memory") => mount.join("memory"),
            _ => continue,
        };
        let group = root.join(path.trim_start_matches('/'));
        folders.extend(group.ancestors().take_while(|folder| folder.starts_with(&root)).map(Path::to_owned));
    }
    folders
}

/// What the limit of one control group leaves. Pages of files that nobody uses count as used there, but give way.
fn left_in(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let files = [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ];
    files.into_iter().find_map(|(limit, used, inactive)| {
        let limit: u64 = read(limit)?.trim().parse().ok()?; // `max` means none
        let used: u64 = read(used)?.trim().parse().ok()?;
        let idle = read("memory.stat").and_then(|text| statistic(&text, inactive)).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(idle)))
    })
}

/// The value of a line such as `inactive_file 4096`.
fn statistic(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_what_is_free() {
        let total =
            kibibytes(&fs::read_to_string("/proc/meminfo").expect("Linux"), "MemTotal:").expect("a line");
        let free = free_bytes(&Device::flex()).expect("Linux says");
        assert!(free > 0 && free <= total, "{free} of {total}");
        assert!(free_bytes(&Device::flex().autodiff()).is_some());
    }

    #[test]
    fn what_this_process_holds_is_at_most_its_peak() {
        let device = Device::flex().autodiff();
        let ballast = std::hint::black_box(vec![1u8; 16 << 20]);
        let used = used_bytes(&device).expect("Linux says");
        let peak = peak_bytes(&device).expect("Linux says");
        assert!(used >= ballast.len() as u64 && peak >= used, "{used} of {peak}");
    }

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24676404 kB\nMemFree:         100 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(kibibytes(text, "MemAvailable:"), Some(23_068_672 * 1024));
        assert_eq!(kibibytes(text, "SwapFree:"), None);
        assert_eq!(kibibytes("MemAvailable: many kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_soft_limit_of_addresses_counts() {
        let status = "Name:\tx\nVmPeak:\t  9000 kB\nVmSize:\t    1000 kB\n";
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max address space         {soft:<20} unlimited            bytes     \n"
            )
        };
        assert_eq!(addresses_left(&limits("4096000"), status), Some(4_096_000 - 1_024_000));
        assert_eq!(addresses_left(&limits("5"), status), Some(0));
        assert_eq!(addresses_left(&limits("unlimited"), status), None);
    }

    #[test]
    fn groups_of_both_versions_are_found_with_those_above() {
        let names = |text: &str| groups(text, Path::new("/g"));
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(names("0::/a/b\n"), paths(&["/g/a/b", "/g/a", "/g"]));
        assert_eq!(names("0::/\n"), paths(&["/g"]));
        assert_eq!(
            names("12:cpu,cpuacct:/x\n5:memory:/docker/1\n1:name=systemd:/y\n"),
            paths(&["/g/memory/docker/1", "/g/memory/docker", "/g/memory"])
        );
        assert_eq!(names("nonsense\n"), paths(&[]));
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        assert_eq!(left_in(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left_in(folder.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left_in(folder.path()), Some(300));
        write("memory.stat", "anon 5\ninactive_file 200\ninactive_file_more 9\n");
        assert_eq!(left_in(folder.path()), Some(500));
        write("memory.current", "1300\n");
        assert_eq!(left_in(folder.path()), Some(0));
    }

    #[test]
    fn a_group_of_version_1() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "1000\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 400\n");
        assert_eq!(left_in(folder.path()), Some(9_223_372_036_854_771_712 - 600));
    }
}
