//! Labels that someone broke on purpose: the whole set is refused with exit 3, before training, in little memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use softshard_e2e::{Said, World, command, run};

/// Address space of a reader: less than what a bomb asks for.
const MEMORY_CAP: u64 = 1500 << 20;

const MANIFEST: &str = "run/labels/train/manifest.json";
const DATA: &str = "run/labels/train/data";

fn manifest(world: &World) -> Value {
    let bytes = fs::read(world.path(MANIFEST)).expect("the manifest is there");
    serde_json::from_slice(&bytes).expect("a manifest is JSON")
}

fn write_manifest(world: &World, manifest: &Value) {
    let text = serde_json::to_string_pretty(manifest).expect("JSON is written");
    fs::write(world.path(MANIFEST), text).expect("the manifest is written");
}

/// Place of a shard.
fn shard(world: &World, index: usize) -> PathBuf {
    let manifest = manifest(world);
    world.path(DATA).join(manifest["shards"][index]["file"].as_str().expect("a shard has a name"))
}

/// Runs `break_it`, trains, expects a refusal that says `parts`, and puts everything back.
fn refused(world: &World, parts: &[&str], break_it: impl FnOnce(&mut Value)) {
    let before = world.files("run/labels/train");
    let mut broken = manifest(world);
    break_it(&mut broken);
    write_manifest(world, &broken);
    world.run("train-student", &[]).failed(3, parts);
    assert!(!world.path("run/student/metrics.jsonl").exists(), "{parts:?}: nothing is trained");
    fs::remove_dir_all(world.path(DATA)).expect("the shards are removed");
    fs::create_dir(world.path(DATA)).expect("the folder is made");
    for (name, bytes) in before {
        fs::write(world.path("run/labels/train").join(name), bytes).expect("the file is put back");
    }
}

/// Puts `bytes` in place of a shard under the name that they hash to, as the manifest then says: what is wrong with them
/// must be found in them.
fn forge(world: &World, index: usize, bytes: &[u8], manifest: &mut Value) -> String {
    let hash = blake3::hash(bytes).to_hex();
    let count = manifest["shards"].as_array().expect("a list").len();
    let name = format!("labels-{index:05}-of-{count:05}-{}.parquet", &hash[..12]);
    fs::remove_file(shard(world, index)).expect("the shard is removed");
    fs::write(world.path(DATA).join(&name), bytes).expect("the shard is written");
    let record = &mut manifest["shards"][index];
    record["file"] = json!(name);
    record["bytes"] = json!(bytes.len());
    record["blake3"] = json!(hash.as_str());
    name
}

/// Covers names that lead out of the folder, and sets of shards that are not those of the plan.
#[test]
fn hostile_manifests_are_refused_as_a_whole() {
    let world = World::small_labelled();
    let file = |name: String| move |manifest: &mut Value| manifest["shards"][1]["file"] = json!(name);
    let good = manifest(&world)["shards"][1]["file"].as_str().expect("a name").to_owned();
    let place = ["manifest.json` shard 1", good.as_str()];
    refused(&world, &place, file(format!("../data/{good}")));
    refused(&world, &place, file(world.path(DATA).join(&good).display().to_string()));
    refused(&world, &place, file("/etc/passwd".into()));
    refused(&world, &place, file(format!("./{good}")));
    refused(&world, &place[..1], |manifest| {
        for field in ["file", "bytes", "blake3", "sha256"] {
            manifest["shards"][1][field] = manifest["shards"][0][field].clone();
        }
    });
    refused(&world, &["expected the 6 shards of the plan, found 5"], |manifest| {
        manifest["shards"].as_array_mut().expect("a list").remove(1);
    });
    refused(&world, &["expected the 6 shards of the plan, found 7"], |manifest| {
        let again = manifest["shards"][0].clone();
        manifest["shards"].as_array_mut().expect("a list").push(again);
    });
    refused(&world, &["manifest.json` shard 0"], |manifest| {
        manifest["shards"].as_array_mut().expect("a list").swap(0, 1);
    });
    refused(&world, &["plan_blake3"], |manifest| manifest["plan"]["seed"] = json!(99));
    refused(&world, &["manifest.json", "unknown field"], |manifest| manifest["extra"] = json!(1));
    refused(&world, &["manifest.json", "version"], |manifest| manifest["version"] = json!(3));
    refused(&world, &["manifest.json", "sums"], |manifest| manifest["rows"] = json!(u64::MAX));
    refused(&world, &["manifest.json"], |manifest| {
        for shard in manifest["shards"].as_array_mut().expect("a list") {
            shard["labelled_tokens"] = json!(u64::MAX); // their sum overflows
        }
    });
    world.run("train-student", &[]).succeeded();
}

/// Covers folders that do not hold what the manifest lists: a shard that is gone, one too many, links.
#[test]
fn missing_extra_and_linked_shards_are_refused() {
    let world = World::small_labelled();
    let (first, data) = (shard(&world, 0), world.path(DATA));
    let name = first.file_name().expect("a name").to_string_lossy().into_owned();
    refused(&world, &[&name, "found none"], |_| fs::remove_file(&first).expect("a shard is removed"));
    refused(&world, &["data", "extra.parquet"], |_| {
        fs::copy(&first, data.join("extra.parquet")).expect("a shard is copied");
    });
    refused(&world, &[&name, "a link"], |_| {
        let away = world.path("away.parquet");
        fs::rename(&first, &away).expect("a shard is moved");
        std::os::unix::fs::symlink(&away, &first).expect("a link is made");
    });
    let manifest = world.path(MANIFEST);
    let away = world.path("away.json");
    fs::rename(&manifest, &away).expect("the manifest is moved");
    std::os::unix::fs::symlink(&away, &manifest).expect("a link is made");
    world.run("train-student", &[]).failed(3, &["manifest.json", "a link"]);
}

/// Covers files that a dead machine left half: a reader refuses a torn manifest, a writer a torn plan.
#[test]
fn torn_manifest_and_plan_are_refused() {
    let world = World::small_labelled();
    let torn = |path: &Path| {
        let whole = fs::read(path).expect("the file is there");
        let mut torn: Vec<Vec<u8>> =
            [0, 1, whole.len() / 2, whole.len() - 3].map(|length| whole[..length].to_vec()).into();
        // Junk, and what a file system leaves that knew the size of a file before its content.
        torn.extend([b"junk".to_vec(), b"{}".to_vec(), b"null".to_vec(), vec![0; whole.len()]]);
        torn
    };
    let path = world.path(MANIFEST);
    for bytes in torn(&path) {
        fs::write(&path, bytes).expect("the manifest is torn");
        world.run("train-student", &[]).failed(3, &["manifest.json"]);
    }
    let path = world.path("run/labels/train/_softshard/plan.json");
    for bytes in torn(&path) {
        fs::write(&path, &bytes).expect("the plan is torn");
        world.run("teacher-labels", &[]).failed(3, &["plan.json"]);
        assert_eq!(fs::read(&path).expect("the plan is there"), bytes, "nothing is written");
    }
}

/// Covers shards that are not what their hash says, and those whose hash is right but which are no shards.
#[test]
fn truncated_empty_and_junk_shards_are_named() {
    let world = World::small_labelled();
    let path = shard(&world, 2);
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let good = fs::read(&path).expect("the shard is there");
    let other = fs::read(shard(&world, 3)).expect("the shard is there");
    let junk: Vec<u8> = (0..good.len()).map(|index| (index * 31 % 251) as u8).collect();
    let magic = [b"PAR1", &junk[..], b"PAR1"].concat();
    let broken = [&good[..good.len() - 1], &good[..good.len() / 2], &[], &junk, &magic, &other];
    for bytes in broken {
        refused(&world, &[&name], |_| fs::write(&path, bytes).expect("the shard is broken"));
        refused(&world, &["shard `labels-00002-of-00006-"], |manifest| {
            drop(forge(&world, 2, bytes, manifest))
        });
    }
    world.run("train-student", &[]).succeeded();
}

/// A number as Thrift writes it.
fn varint(number: u64) -> Vec<u8> {
    let (mut doubled, mut bytes) = (2 * number, Vec::new());
    while doubled >= 128 {
        bytes.push((doubled & 127) as u8 | 128);
        doubled >>= 7;
    }
    bytes.push(doubled as u8);
    bytes
}

/// A shard with one data page that says it holds so many bytes, of 5 digits, once decompressed; every hash is right.
///
/// The number is 2 digits longer than the true one: the page loses its last 2 bytes, so that all offsets stay.
fn bomb(shard: &[u8], bytes: u64) -> Vec<u8> {
    let claimed = varint(bytes);
    assert_eq!(claimed.len(), 5);
    let footer_bytes = shard.last_chunk::<8>().expect("a footer")[..4].try_into().expect("4 bytes");
    let footer = shard.len() - 8 - usize::try_from(u32::from_le_bytes(footer_bytes)).expect("a length");
    let is_page = |at: &usize| match &shard[*at..*at + 11] {
        // Field 1: 0, a data page. Field 2, decompressed bytes: 3 digits. Field 3, bytes: 2 digits. Field 5: a structure.
        [0x15, 0, 0x15, low, middle, high, 0x15, first, second, 0x2c, 0x15] => {
            *low >= 128 && *middle >= 128 && *high < 128 && *first >= 128 && *second < 128
        }
        _ => false,
    };
    let page = (4..footer - 11).find(is_page).expect("a page of at least 8 KiB");
    let end_of_header = [0x15, 6, 0x15, 6, 0, 0]; // encodings of the levels, and the ends of two structures
    let header = shard[page..].windows(6).position(|bytes| bytes == end_of_header).expect("a data page") + 6;
    let body = page + header;
    // Numbers are doubled, in digits of 7 bits.
    let doubled = u16::from(shard[page + 7] & 127) | u16::from(shard[page + 8]) << 7;
    let shorter = doubled - 2 * 2;
    let low = u8::try_from(shorter & 127).expect("7 bits") | 128;
    let high = u8::try_from(shorter >> 7).expect("7 bits");
    let bomb = [
        &shard[..page],
        &[0x15, 0, 0x15],
        &claimed,
        &[0x15, low, high],
        &shard[page + 9..body],
        &shard[body..body + usize::from(doubled / 2) - 2],
        &shard[body + usize::from(doubled / 2)..],
    ];
    let mut bomb = bomb.concat();
    assert_eq!(bomb.len(), shard.len());
    // The shard is one row group, and its hash stands in the footer.
    let old = blake3::hash(&shard[4..footer]).to_hex();
    let at =
        shard.windows(64).position(|window| window == old.as_bytes()).expect("the hash of the row group");
    let new = blake3::hash(&bomb[4..footer]).to_hex();
    bomb[at..at + 64].copy_from_slice(new.as_bytes());
    bomb
}

/// Runs a command in little memory.
fn capped(command: &Command) -> Said {
    let mut capped = Command::new("prlimit");
    run(capped.arg(format!("--as={MEMORY_CAP}")).arg(command.get_program()).args(command.get_args()))
}

/// Covers a small file that asks for more memory than there is; a good dataset trains under the same cap.
#[test]
fn a_bomb_is_refused_under_a_memory_cap() {
    let world = World::small_labelled();
    fs::remove_dir_all(world.path("run/labels")).expect("the labels are removed");
    // Longer shards, so that a page is long enough to be changed in place.
    world.run("teacher-labels", &["labels.sequences_per_shard=12"]).succeeded();
    let train = |output: &str| capped(&world.stage("train-student", &[&format!("output.student={output}")]));
    train("good").succeeded();
    let mut manifest = manifest(&world);
    let bytes = bomb(&fs::read(shard(&world, 0)).expect("the shard is there"), (1 << 31) - 1);
    let name = forge(&world, 0, &bytes, &mut manifest);
    write_manifest(&world, &manifest);
    train("bombed").failed(3, &[&name, "a page of at most"]);
}

/// A shard whose footer says that each of its columns has so many bytes once decompressed.
fn claiming(shard: &[u8], bytes: u64) -> Vec<u8> {
    let size = shard.last_chunk::<8>().expect("a footer")[..4].try_into().expect("4 bytes");
    let start = shard.len() - 8 - usize::try_from(u32::from_le_bytes(size)).expect("a length");
    let (mut rest, mut footer, mut claims) = (&shard[start..shard.len() - 8], Vec::new(), 0);
    while let Some(&byte) = rest.first() {
        // Field 4 of a column: zstd. Field 5: values. Field 6: bytes without compression.
        if rest.starts_with(&[0x15, 12, 0x16]) {
            let end_of_varint =
                |from: usize| from + 1 + rest[from..].iter().position(|byte| *byte < 128).expect("an end");
            let sizes = end_of_varint(3);
            assert_eq!(rest[sizes], 0x16);
            footer.extend(&rest[..=sizes]);
            footer.extend(varint(bytes));
            rest = &rest[end_of_varint(sizes + 1)..];
            claims += 1;
            continue;
        }
        footer.push(byte);
        rest = &rest[1..];
    }
    assert!(claims > 5, "{claims} columns");
    let size = u32::try_from(footer.len()).expect("4 bytes").to_le_bytes();
    [&shard[..start], &footer, &size, b"PAR1"].concat()
}

/// Covers many bombs at a time: what all threads decode has one limit, however many there are.
#[test]
fn bombs_in_all_shards_are_refused_by_64_threads_under_a_memory_cap() {
    /// Below what a fifth of the bombs ask for.
    const CAP: u64 = 2500 << 20;
    const BOMB: u64 = 400 << 20;
    let world = World::new();
    let split = "data.split={ valid_rows = 0, seed = 1 }";
    world.run("prepare", &[split]).succeeded();
    world.run("finetune", &["finetune.max_steps=2", split]).succeeded();
    world
        .run(
            "teacher-labels",
            &[split, "labels.sequences_per_shard=2", "labels.selection={ kind = \"top_k\", k = 64 }"],
        )
        .succeeded();
    let mut manifest = manifest(&world);
    let shards = manifest["shards"].as_array().expect("a list").len();
    assert!(shards > 30, "{shards} shards");
    let capped = |command: &Command| {
        let mut capped = Command::new("prlimit");
        capped.arg(format!("--as={CAP}")).arg(command.get_program()).args(command.get_args());
        run(capped.env("RAYON_NUM_THREADS", "64"))
    };
    let labels = world.path("run/labels/train");
    let verify = command(&["labels", "verify", labels.to_str().expect("a path of ASCII")]);
    let stats = command(&["labels", "stats", labels.to_str().expect("a path of ASCII")]);
    for good in [&verify, &stats] {
        capped(good).succeeded();
    }
    for index in 0..shards {
        let bytes = fs::read(shard(&world, index)).expect("the shard is there");
        let bytes = claiming(&bomb(&bytes, BOMB), BOMB);
        forge(&world, index, &bytes, &mut manifest);
    }
    write_manifest(&world, &manifest);
    let said = capped(&verify).failed(3, &["problems"]);
    assert!(said.stdout.contains("a zstd frame") || said.stdout.contains("expected 419430400"), "{said:?}");
    capped(&stats).failed(3, &["shard `labels-"]);
    let student = [split, "labels.sequences_per_shard=2", "student.model=run/teacher/model"];
    let labelled = "labels.selection={ kind = \"top_k\", k = 64 }";
    let student = [&student[..], &[labelled]].concat();
    capped(&world.stage("train-student", &student)).failed(3, &["shard `labels-"]);
}

/// Puts many copies of a piece of JSON between two others.
fn repeated(start: &str, piece: &str, times: usize, end: &str) -> Vec<u8> {
    [start.as_bytes(), &piece.as_bytes().repeat(times), end.as_bytes()].concat()
}

/// Covers manifests that are small on the disk, or are no manifests at all, and would be large in memory.
#[test]
fn json_bombs_are_refused_under_a_memory_cap() {
    let world = World::small_labelled();
    let labels = world.path("run/labels/train");
    let verify = command(&["labels", "verify", labels.to_str().expect("a path of ASCII")]);
    let path = world.path(MANIFEST);
    capped(&verify).succeeded();
    let good = fs::read_to_string(&path).expect("the manifest is there");
    let head = r#"{"format":"softshard-labels","version":1,"#;
    let shards = good.split_once("\"shards\": [").expect("the ranges of the plan");
    let ids = good.split_once("\"special_ids\": {").expect("the special ids");
    let mut many_ids = format!("{}\"special_ids\": {{", ids.0);
    (0..3_000_000).for_each(|id| many_ids += &format!("\"{id}\":1,"));
    let temperatures = good.split_once("\"temperatures\": [").expect("the temperatures");
    let bombs = [
        ("depth", repeated("", "[", 30 << 20, "")),
        ("depth in a field", repeated(&format!("{head}\"plan\":"), r#"{"a":"#, 10 << 20, "")),
        ("a list that nobody knows", repeated(&format!("{head}\"extra\":["), "0,", 30 << 20, "0]}")),
        ("a format as a list", repeated(r#"{"format":["#, "0,", 30 << 20, "0]}")),
        (
            "ranges",
            repeated(
                &format!("{}\"shards\": [", shards.0),
                "[0,1],",
                10 << 20,
                &format!("[1,2],{}", shards.1),
            ),
        ),
        ("special ids", [many_ids.as_bytes(), ids.1.as_bytes()].concat()),
        (
            "temperatures",
            repeated(
                &format!("{}\"temperatures\": [", temperatures.0),
                "3,",
                20 << 20,
                &format!("3,{}", temperatures.1),
            ),
        ),
    ];
    for (name, bytes) in bombs {
        fs::write(&path, bytes).expect("the manifest is written");
        let said = capped(&verify).failed(3, &["sound labels, found "]);
        assert!(said.stdout.contains("manifest.json"), "{name}: {said:?}");
        assert!(said.stdout.len() < 10_000, "{name}: a message of {} bytes", said.stdout.len());
    }
    // 64 GiB that take no room on the disk.
    let file = fs::File::create(&path).expect("the manifest is made");
    file.set_len(64 << 30).expect("a file with a hole");
    let said = capped(&verify).failed(3, &["1 problem"]);
    assert!(said.stdout.contains("expected at most 67108864 bytes, found 68719476736"), "{}", said.stdout);
}

/// Covers footers that make the Parquet crate set memory aside, or call itself until the stack ends, and rows that are there
/// only in the manifest.
#[test]
fn footer_bombs_are_refused_under_a_memory_cap() {
    let world = World::small_labelled();
    let labels = world.path("run/labels/train");
    let verify = command(&["labels", "verify", labels.to_str().expect("a path of ASCII")]);
    let file = |footer: &[&[u8]]| {
        let footer = footer.concat();
        let size = u32::try_from(footer.len()).expect("4 bytes").to_le_bytes();
        [b"PAR1", &footer[..], &size, b"PAR1"].concat()
    };
    // Version 1, and a schema whose only element says it has 2^31 - 1 children.
    let children = file(&[
        &[0x15, 2, 0x19, 0x1c, 0x48, 1, b'm', 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0],
        &[0x16, 0, 0x19, 0x0c, 0],
    ]);
    // A million groups within each other; a field of 10 million lists within each other; 15 million row groups.
    let levels = file(&[
        &[0x15, 2, 0x19, 0xfc, 0xc0, 0x84, 0x3d],
        &[0x48, 1, b'm', 0x15, 2, 0].repeat(1_000_000),
        &[0],
    ]);
    let lists = file(&[&[0xf9], &[0x19].repeat(10_000_000)]);
    let groups = file(&[&[0x15, 2, 0x39, 0xfc, 0xc0, 0xc3, 0x93, 0x07], &vec![0; 15_000_000], &[0]]);
    let bombs = [
        (children, "footer schema: expected at most 4096 columns in 8 levels"),
        (levels, "footer schema: expected at most 4096 columns in 8 levels"),
        (lists, "footer header: expected at most 16 nested structures and lists"),
        (groups, "footer header: expected lists of at most 536870912 bytes in memory"),
    ];
    for (bytes, expected) in bombs {
        let mut manifest = manifest(&world);
        let name = forge(&world, 1, &bytes, &mut manifest);
        write_manifest(&world, &manifest);
        let said = capped(&verify).failed(3, &["problem"]);
        assert!(said.stdout.contains(expected) && said.stdout.contains(&name), "{expected}: {said:?}");
        capped(&world.stage("train-student", &[])).failed(3, &[expected, &name]);
    }
}
