//! An Indexed Job of Kubernetes, and the Jobs that come after it: written as manifests, for `kubectl` and for reviewers.

use std::{
    fmt::Write as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use fs_err as fs;

use super::{
    files::{Engine, Files},
    options::{Claim, Submission},
    tasks::{LIST, list},
};
use crate::{recipe::RecipeError, shell};

/// Most indices of a Job at a time, where each has a limit of its own.
pub(super) const MAX_TASKS: usize = 10_000;
/// Where pods find the recipe.
const RECIPE: &str = "/etc/softshard/recipe.toml";
/// Letters of a Job's name: with an index it is the name of a host, which has 63.
const NAME: usize = 40;

/// What every pod of a submission has.
struct Pods<'a> {
    /// Of the Job and of the recipe's ConfigMap.
    name: String,
    image: &'a str,
    claims: &'a [Claim],
    gpus: usize,
}

/// Writes the manifests and says what to do with them.
pub(super) fn write(submission: &Submission) -> Result<()> {
    let Submission { recipe, options, of, tasks, .. } = *submission;
    let files = Files::of(recipe, Engine::Kubernetes);
    let (image, claims) = options.pods()?;
    check_claims(submission, claims)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    // Jobs do not change: another submission has another name.
    let name = format!("{}-{}", job_name(files.name()), now.as_secs());
    let pods = Pods { name, image, claims, gpus: gpus(options.device())? };
    let device = options.device();
    let text = toml::to_string_pretty(recipe)?;

    let accepted: String =
        options.accept().map(|word| Ok(format!(", {}", scalar(&word)?))).collect::<Result<_>>()?;
    let part = format!(
        "[teacher-labels, {RECIPE}, --task, auto, --of, \"{of}\", --device, {}{accepted}]",
        scalar(device)?
    );
    let array = pods.array(tasks, of, options.at_once, &part)?;
    let finalize = pods.job("finalize", &format!("[labels, finalize, {RECIPE}]"), 0)?;
    let student = format!("[train-student, {RECIPE}, --device, {}{accepted}]", scalar(device)?);
    let student = options.then_student.then(|| pods.job("student", &student, pods.gpus)).transpose()?;
    let mut paths = vec![(pods.name.clone(), files.with(".yaml"))];
    fs::write(&paths[0].1, format!("{}---\n{array}", pods.recipe(&text)))?;
    for (suffix, job) in [("finalize", Some(finalize)), ("student", student)] {
        if let Some(job) = job {
            paths.push((format!("{}-{suffix}", pods.name), files.with(&format!("-{suffix}.yaml"))));
            fs::write(&paths[paths.len() - 1].1, job)?;
        }
    }

    println!("{} tasks of {of}: {}", tasks.len(), list(tasks));
    println!("nothing is applied; one after the other:");
    for (index, (name, path)) in paths.iter().enumerate() {
        let condition = if index == 2 { complete(&paths[1].0) } else { String::new() };
        println!("  {condition}kubectl apply --filename={}", shell::path(path));
        if index + 1 < paths.len() {
            println!("  {}", ended(name));
        }
    }
    println!("watch:  kubectl get job/{0} --watch; kubectl logs --follow job/{0}", pods.name);
    println!("cancel: kubectl delete job/{}", pods.name);
    println!("the recipe's paths are those of the pods; tasks that run twice do no harm");
    Ok(())
}

/// A command that waits until a Job is complete or has failed: `kubectl wait` waits for one of the two.
fn ended(job: &str) -> String {
    format!(
        "until kubectl get job/{job} --output=jsonpath='{{.status.conditions[?(@.status==\"True\")].type}}' | \
         grep --quiet --word-regexp --regexp=Complete --regexp=Failed; do sleep 10; done"
    )
}

/// The beginning of a command that is for a Job that has ended well.
fn complete(job: &str) -> String {
    format!("kubectl wait --for=condition=Complete --timeout=0 job/{job} && ")
}

/// Refuses an output inside of a container, which would be lost with it.
fn check_claims(submission: &Submission, claims: &[Claim]) -> Result<(), RecipeError> {
    let labels = &submission.recipe.output.labels;
    let is_store = labels.to_str().is_some_and(|text| text.contains("://"));
    if is_store || claims.iter().any(|claim| labels.starts_with(&claim.path)) {
        return Ok(());
    }
    Err(RecipeError(format!(
        "`output.labels`: expected a path below a volume of the pods, found `{}`\n\
         hint: `--claim {}` names the claim of a volume and where pods see it",
        labels.display(),
        shell::word(&format!("NAME:{}", submission.recipe.output.dir.display()))
    )))
}

impl Pods<'_> {
    /// The recipe as pods find it.
    fn recipe(&self, text: &str) -> String {
        let name = &self.name;
        let mut manifest = format!(
            "# Written by `softshard submit` (docs/cluster.md). The recipe, as it was then:\n\
             apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\nimmutable: true\ndata:\n  recipe.toml: |\n"
        );
        for line in text.lines() {
            manifest += if line.is_empty() { "" } else { "    " };
            manifest += line;
            manifest.push('\n');
        }
        manifest
    }

    /// The workers.
    fn array(&self, tasks: &[usize], of: usize, at_once: Option<usize>, arguments: &str) -> Result<String> {
        let count = tasks.len();
        let mut manifest =
            format!("# {count} of {of} tasks: each is an idempotent worker, which skips what is done.\n");
        manifest += &self.head(&self.name);
        write!(
            manifest,
            "  completionMode: Indexed\n  completions: {count}\n  parallelism: {}\n\
             \x20 # A task that fails starts again at most 3 times; the others go on.\n  backoffLimitPerIndex: 3\n",
            at_once.unwrap_or(count).min(count)
        )?;
        let rule = "      # A bad recipe or bad data stays as it is.\n      - action: FailIndex\n        \
                    onExitCodes: { containerName: softshard, operator: In, values: [2, 3] }\n";
        manifest += &policy(rule);
        // Indices count from 0 without a gap: the list says which task each stands for.
        let listed =
            (count < of).then(|| format!("\n            - {{ name: {LIST}, value: \"{}\" }}", list(tasks)));
        manifest += &self.template(arguments, self.gpus, listed.as_deref().unwrap_or(""))?;
        Ok(manifest)
    }

    /// One pod that comes after the workers.
    fn job(&self, suffix: &str, arguments: &str, gpus: usize) -> Result<String> {
        let mut manifest = format!(
            "# Written by `softshard submit` (docs/cluster.md): {suffix}, when the Job before has ended.\n"
        );
        manifest += &self.head(&format!("{}-{suffix}", self.name));
        manifest += "  backoffLimit: 3\n";
        let rule = "      - action: FailJob\n        \
                    onExitCodes: { containerName: softshard, operator: In, values: [2, 3] }\n";
        manifest += &policy(rule);
        manifest += &self.template(arguments, gpus, "")?;
        Ok(manifest)
    }

    fn head(&self, name: &str) -> String {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {name}\n  \
             labels: {{ app.kubernetes.io/name: softshard, app.kubernetes.io/instance: {} }}\nspec:\n",
            self.name
        )
    }

    fn template(&self, arguments: &str, gpus: usize, variables: &str) -> Result<String> {
        let mut text = String::from(
            "  template:\n    spec:\n      restartPolicy: Never\n      \
             # From SIGTERM on: time to stop at a boundary. More, and a shard in work is not lost.\n      \
             terminationGracePeriodSeconds: 120\n      containers:\n        - name: softshard\n",
        );
        write!(
            text,
            "          image: {}\n          command: [softshard]\n          args: {arguments}\n",
            scalar(self.image)?
        )?;
        if !variables.is_empty() {
            writeln!(text, "          env:{variables}")?;
        }
        if gpus > 0 {
            writeln!(text, "          resources: {{ limits: {{ nvidia.com/gpu: {gpus} }} }}")?;
        }
        text += "          volumeMounts:\n            - { name: recipe, mountPath: /etc/softshard, readOnly: true }\n";
        for (index, claim) in self.claims.iter().enumerate() {
            writeln!(
                text,
                "            - {{ name: claim-{index}, mountPath: {} }}",
                path_scalar(&claim.path)?
            )?;
        }
        writeln!(text, "      volumes:\n        - {{ name: recipe, configMap: {{ name: {} }} }}", self.name)?;
        for (index, claim) in self.claims.iter().enumerate() {
            writeln!(
                text,
                "        - {{ name: claim-{index}, persistentVolumeClaim: {{ claimName: {} }} }}",
                scalar(&claim.name)?
            )?;
        }
        Ok(text)
    }
}

/// What ends of pods mean, `rule` last.
fn policy(rule: &str) -> String {
    format!(
        "  podFailurePolicy:\n    rules:\n      \
         # 75: stopped at a boundary, to go on. Disruption: the node was drained, preempted or lost. Neither is a failure.\n      \
         - action: Ignore\n        \
         onExitCodes: {{ containerName: softshard, operator: In, values: [75] }}\n      \
         - action: Ignore\n        onPodConditions: [{{ type: DisruptionTarget, status: \"True\" }}]\n{rule}"
    )
}

/// GPUs of a pod: `cuda:0,1` are two, `cuda` all that it has, of which it asks for one.
fn gpus(device: &str) -> Result<usize, RecipeError> {
    if device.contains("wgpu") {
        return Err(RecipeError(format!(
            "`--device {device}`: expected cpu or cuda, as a manifest asks for NVIDIA's GPUs\nhint: edit the manifest of `--device cpu`"
        )));
    }
    Ok(if device.starts_with("cuda") { device.split(',').count() } else { 0 })
}

/// Labels' name as the beginning of a Job's.
fn job_name(labels: &str) -> String {
    let good = labels.to_ascii_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let name = format!("softshard-{}", good.trim_matches('-'));
    let name: String = name.chars().take(NAME).collect();
    name.trim_end_matches('-').to_owned()
}

/// Any text as YAML: of JSON every string is one.
fn scalar(text: &str) -> Result<String> {
    Ok(serde_json::to_string(text)?)
}

fn path_scalar(path: &Path) -> Result<String> {
    scalar(path.to_str().context("paths of claims came as text")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_names_that_hosts_may_have() {
        for (labels, name) in
            [("labels", "softshard-labels"), ("Top_K.64", "softshard-top-k-64"), ("--", "softshard")]
        {
            assert_eq!(job_name(labels), name);
        }
        assert!(job_name(&"long".repeat(30)).len() <= NAME);
        assert!(super::super::options::is_name(&job_name("ä".repeat(50).as_str())));
    }

    #[test]
    fn every_device_of_a_worker_is_a_gpu() {
        for (device, count) in [("cpu", 0), ("cpu,cpu", 0), ("cuda", 1), ("cuda:0", 1), ("cuda:0,1", 2)] {
            assert_eq!(gpus(device).expect("a device"), count, "{device}");
        }
        assert!(gpus("wgpu:0").is_err(), "whose GPU it is nobody knows");
    }
}
