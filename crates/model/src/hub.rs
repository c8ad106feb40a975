//! Names of models on the Hugging Face Hub.

use std::path::Path;

/// The name on the Hub, `owner/name`, of a model folder in the Hub's cache: `…/models--owner--name/snapshots/<commit>`. A path there is
/// one that no other machine has.
pub fn hub_name(model: &Path) -> Option<String> {
    let mut parents = model.ancestors();
    let commit = parents.next()?.file_name()?.to_str()?;
    let snapshots = parents.next()?.file_name()?;
    let repository = parents.next()?.file_name()?.to_str()?.strip_prefix("models--")?;
    let is_commit = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A name without an owner, as `gpt2`, has no second part.
    let name = repository.replacen("--", "/", 1);
    (snapshots == "snapshots" && is_commit && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_in_the_cache_has_its_name() {
        let name = |path: &str| hub_name(Path::new(path));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let cache = "/home/me/.cache/huggingface/hub";
        let qwen = format!("{cache}/models--Qwen--Qwen2.5-7B/snapshots/{commit}");
        assert_eq!(name(&qwen).as_deref(), Some("Qwen/Qwen2.5-7B"));
        assert_eq!(name(&format!("{qwen}/")).as_deref(), Some("Qwen/Qwen2.5-7B"));
        assert_eq!(name(&format!("{cache}/models--gpt2/snapshots/{commit}")).as_deref(), Some("gpt2"));
        assert_eq!(name("/models/Qwen2.5-7B"), None);
        assert_eq!(name(&format!("{cache}/models--Qwen--Qwen2.5-7B/blobs/{commit}")), None);
        assert_eq!(name(&format!("{cache}/models--Qwen--Qwen2.5-7B/snapshots/main branch")), None);
    }
}
