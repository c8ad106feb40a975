//! Writes a label dataset: plan first, then one commit for each shard, then the manifest.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::card;
use super::commit::{COMMITS, commit_file};
use super::job::{Commit, Job};
use super::label_shard::ShardWriter;
use super::manifest::{self, LabelsManifest};
use super::output::{Output, PLAN};
use super::plan::LabelPlan;
use crate::host::{PRIVATE, TempFile};
use crate::shard::{ShardFile, ShardReader, ShardRecord, Totals, WrittenFile, totals};
use crate::values::{Error, HINT_DAMAGED, ReadLimits, json, quoted};

/// Writes a label dataset, or goes on with one; any number of processes may write shards of one dataset.
///
/// There are no locks and no clocks: the files are the truth. Cheap to clone and to share between threads.
#[derive(Clone, Debug)]
pub struct LabelWriter {
    job: Arc<Job>,
}

impl LabelWriter {
    /// Whether there is a plan, or a finished dataset. Writes to a folder that is not finished either way, so that one that cannot
    /// be written fails here, before a teacher is loaded, and a teacher that cannot be loaded leaves no plan.
    ///
    /// # Errors
    /// [`Error::Bad`] if the output holds other files and no dataset; I/O.
    pub fn is_begun(output: impl Into<Output>) -> Result<bool, Error> {
        let output = output.into();
        output.check_foreign()?;
        if output.manifest()?.is_some() {
            return Ok(true);
        }
        output.prepare(&[PRIVATE, "_softshard/tmp"])?;
        drop(TempFile::create(output.scratch()?.root())?);
        output.is_there(PLAN)
    }

    /// Creates the dataset with its plan, or resumes it if it has the same plan.
    ///
    /// Writes right away, so an output that cannot be written fails here; but to one that is finished as its manifest says nothing.
    /// Temporary files that dead processes of this machine left are removed.
    ///
    /// # Errors
    /// [`Error::OtherPlan`] naming every key that differs, of a plan or of a finished dataset without one;
    /// [`Error::Bad`] if the plan itself is wrong, or if the output holds a manifest that cannot be read, or other files
    /// and no dataset; I/O. Nothing is written then.
    pub fn create_or_resume(output: impl Into<Output>, plan: LabelPlan) -> Result<Self, Error> {
        plan.validate()?;
        let output = output.into();
        output.check_foreign()?;
        output.has_plan(&plan)?;
        if output.finished(&plan)?.is_some() {
            let job = Job::new(output, plan);
            if job.finished()?.is_some() {
                return Ok(Self { job: Arc::new(job) });
            }
            return Self::begin(job.output, job.plan);
        }
        Self::begin(output, plan)
    }

    /// Writes the plan, unless it is there.
    fn begin(output: Output, plan: LabelPlan) -> Result<Self, Error> {
        output.prepare(&["data", PRIVATE, "_softshard/tmp", "_softshard/commits"])?;
        if !output.create(PLAN, &json::to_bytes(&plan))? && !output.has_plan(&plan)? {
            return Err(Error::bad(quoted(&output.path(PLAN)), "a plan", "something that is not read"));
        }
        let job = Job::new(output, plan);
        job.scratch()?;
        Ok(Self { job: Arc::new(job) })
    }

    /// Goes on with the dataset that lies there, by its plan or, where it has none, its manifest.
    ///
    /// # Errors
    /// [`Error::Bad`] if there is neither, or if it is not what a plan may be; see [`LabelWriter::create_or_resume`].
    pub fn open(output: impl Into<Output>) -> Result<Self, Error> {
        let output = output.into();
        let Some(plan) = plan_in(&output)? else {
            let place = quoted(&output.place());
            let expected = format!("a label dataset that was begun, with `{PLAN}`");
            return Err(Error::bad(place, expected, "none").hint("`softshard teacher-labels` begins it"));
        };
        Self::create_or_resume(output, plan)
    }

    /// The dataset that lies there, to ask what it lacks; `None` if none was begun. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Bad`] if the output holds other files and no dataset, or a plan that is none; I/O.
    pub fn look(output: impl Into<Output>) -> Result<Option<Self>, Error> {
        let output = output.into();
        output.check_foreign()?;
        let Some(plan) = plan_in(&output)? else { return Ok(None) };
        plan.validate()?;
        output.finished(&plan)?;
        Ok(Some(Self { job: Arc::new(Job::new(output, plan)) }))
    }

    /// The plan of the dataset.
    pub fn plan(&self) -> &LabelPlan {
        &self.job.plan
    }

    /// Shards that have no valid commit, ascending.
    ///
    /// Of a finished dataset the manifest and the sizes of the files are looked at; of another one the files of all committed
    /// shards are hashed, in parallel. An object of a store carries its hash in its name, and only its size is looked at.
    ///
    /// # Errors
    /// I/O.
    pub fn missing(&self) -> Result<Vec<usize>, Error> {
        self.missing_of(0..self.job.plan.shards.len())
    }

    /// The same of some shards: what a worker asks that has these to do.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If the plan has no such shards.
    pub fn missing_of(&self, shards: Range<usize>) -> Result<Vec<usize>, Error> {
        if self.job.finished()?.is_some() {
            return Ok(Vec::new());
        }
        let records = self.job.records(shards.clone())?;
        Ok(shards.zip(records).filter_map(|(shard, record)| record.is_none().then_some(shard)).collect())
    }

    /// Shards without a commit, ascending, by the names of the commits alone: one with a damaged file is not among them. A finished dataset
    /// has none.
    ///
    /// # Errors
    /// I/O.
    pub fn uncommitted(&self) -> Result<Vec<usize>, Error> {
        if self.job.finished()?.is_some() {
            return Ok(Vec::new());
        }
        let committed = self.job.output.names(COMMITS)?;
        let shards = 0..self.job.plan.shards.len();
        Ok(shards.filter(|shard| !committed.contains_key(&commit_file(*shard))).collect())
    }

    /// Starts a shard, whether or not it is missing.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If the plan has no such shard.
    pub fn shard(&self, shard: usize) -> Result<ShardWriter, Error> {
        assert!(shard < self.job.plan.shards.len(), "the plan has no shard {shard}");
        ShardWriter::create(self.job.clone(), shard)
    }

    /// Commits a copy of a shard of the same plan, after reading all of the copy.
    pub(crate) fn copy_file(&self, shard: usize, from: &Path, record: &ShardRecord) -> Result<Commit, Error> {
        let file = WrittenFile::copy(self.job.scratch()?.root(), from)?;
        if file.sha256 != record.sha256 {
            let expected = format!("SHA-256 {}", record.sha256);
            return Err(Error::bad(quoted(from), expected, &file.sha256).hint(HINT_DAMAGED));
        }
        self.job.publish(shard, &file, record.clone())
    }

    /// Commits a shard with the row groups of a shard of another plan that was made alike: chunks are copied as they are.
    pub(crate) fn copy_groups(
        &self,
        shard: usize,
        from: &ShardReader,
        record: &ShardRecord,
    ) -> Result<Commit, Error> {
        let mut file = ShardFile::create(self.job.scratch()?.root(), &self.job.schema)?;
        for group in 0..from.groups() {
            file.copy_group(from, group)?;
        }
        let file = file.finish()?;
        let &ShardRecord { rows, input_tokens, labelled_tokens, .. } = record;
        let record = self.job.record(&file, shard, &Totals { rows, input_tokens, labelled_tokens });
        self.job.publish(shard, &file, record)
    }

    /// Finishes the dataset: removes leftovers, writes `README.md` and, last, `manifest.json`.
    ///
    /// Finishing again changes nothing.
    ///
    /// # Errors
    /// [`Error::MissingShards`]; [`Error::Bad`] if `data/` holds something foreign; I/O.
    pub fn finish(&self) -> Result<LabelsManifest, Error> {
        let job = &self.job;
        if let Some(manifest) = job.finished()? {
            // It may lie where nothing can be written: what is left to do is not needed to read it.
            if let Err(error) = job.output.settle(&card::of(&manifest)) {
                tracing::warn!(%error, "the labels are finished and sound, but cannot be tidied up");
            }
            return Ok(manifest);
        }
        let records = job.records(0..job.plan.shards.len())?;
        let total = records.len();
        let missing: Vec<usize> = (0..total).filter(|shard| records[*shard].is_none()).collect();
        if !missing.is_empty() {
            let dir = job.output.place();
            return Err(Error::MissingShards { dir, total, missing });
        }
        let shards: Vec<ShardRecord> = records.into_iter().flatten().collect();
        manifest::check_records(
            &job.output.path("manifest.json"),
            "labels",
            &shards,
            &ReadLimits::default(),
        )?;
        job.remove_leftovers(&shards)?;

        let [rows, input_tokens, labelled_tokens] =
            totals(&shards).expect("files on a disk hold fewer tokens");
        let manifest = LabelsManifest {
            format: LabelsManifest::FORMAT.to_owned(),
            version: job.plan.version,
            plan_blake3: job.plan_blake3.clone(),
            plan: job.plan.clone(),
            rows,
            input_tokens,
            labelled_tokens,
            shards,
        };
        job.output.put("README.md", card::of(&manifest).as_bytes())?;
        job.output.put("manifest.json", &json::to_bytes(&manifest))?;
        job.output.clear_temporary()?;
        Ok(manifest)
    }
}

/// The plan of the dataset that lies there: its own, or that of its manifest.
fn plan_in(output: &Output) -> Result<Option<LabelPlan>, Error> {
    if let Some(bytes) = output.read(PLAN)? {
        return json::parse(&output.path(PLAN), &bytes, LabelPlan::FORMAT, LabelPlan::NEWEST_VERSION)
            .map(Some);
    }
    let Some((path, bytes)) = output.manifest()? else { return Ok(None) };
    Ok(Some(manifest::parse_labels(&path, &bytes, &ReadLimits::default())?.plan))
}
