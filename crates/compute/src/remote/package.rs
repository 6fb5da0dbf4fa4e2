//! The code package: what a container needs to run a task of the flow, as one archive that is the
//! same, byte for byte, whenever its contents are. Where it is kept is not decided here.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

use super::language::Language;

/// Always packaged; `--package-suffixes` adds to them (the last four are difference 18).
pub const SUFFIXES: &[&str] = &[".py", ".R", ".RDS", ".c", ".cpp", ".h", ".hpp"];
/// Folder of our own module within the package.
pub const MODULE_FOLDER: &str = ".mf_code";
/// A session's flow beside it.
const SAVED_FLOW: &str = "flow.rds";
/// What the package says of itself.
pub const INFO: &str = ".mf_meta/INFO";

/// 2019-12-03, as the peer's packages have it.
const MODIFIED: u64 = 1_575_331_200;
/// Twice as fast as the usual 6, and 2 % larger.
const LEVEL: u32 = 4;
/// Beyond this the user is told what makes the package large.
const WORTH_A_WARNING: u64 = 100 << 20;
/// Somebody runs a flow in their home folder, or links lead everywhere.
const MOST_FILES: usize = 50_000;

/// What a package is made from.
#[derive(Clone, Debug)]
pub struct PackageSources {
    /// The flow file; its folder is the root of the package.
    pub script: PathBuf,
    /// The flow file as a module of a Python package (`package.flow`); then the root is the folder
    /// that the outermost package is in.
    pub module: Option<String>,
    /// Endings of file names beyond `SUFFIXES`.
    pub suffixes: Vec<String>,
    pub language: Language,
    /// The running installation's `metaflow` folder.
    pub module_folder: PathBuf,
    /// The flow of an R session, which has no script: `script` then only names the folder.
    pub saved_flow: Option<PathBuf>,
    /// For `INFO`.
    pub info: Map<String, Value>,
}

impl PackageSources {
    /// The root of the package.
    fn folder(&self) -> &Path {
        let packages = self.module.as_ref().map_or(0, |name| name.matches('.').count());
        match self.script.ancestors().nth(1 + packages) {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// Where the flow file is in the package.
    pub fn flow_file(&self) -> &Path {
        let name = self.script.file_name().map_or_else(|| Path::new(""), Path::new);
        self.script.strip_prefix(self.folder()).unwrap_or(name)
    }
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageFile {
    /// Where it is in the package.
    pub name: PathBuf,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl PackageFile {
    /// The file on this machine; `None` for what is made up on the way.
    pub fn source(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Bytes(_) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Package {
    /// tar. Compressing it takes most of a second, so that is left until the store lacks it.
    pub archive: Vec<u8>,
    /// BLAKE3 of the archive, in hex; names it in the store.
    pub hash: String,
    /// SHA-256 of the archive, in hex; checked in the container, where Python has no BLAKE3.
    pub sha256: String,
    pub files: Vec<PathBuf>,
    /// What the user should know: files that could not be read, an unusual size.
    pub warnings: Vec<String>,
}

/// Why there is no package. Nothing a retry helps with.
#[derive(Debug, thiserror::Error)]
pub enum PackageFault {
    #[error(
        "the flow's folder `{folder}` holds more than {MOST_FILES} files to package: move the flow into a folder of its own"
    )]
    TooMany { folder: PathBuf },
    #[error("the code package needs the folder `{folder}` of the installed `metaflow`: {error}")]
    Module { folder: PathBuf, error: io::Error },
    #[error("the flow file `{0}` is not in a folder that can be packaged")]
    Script(PathBuf),
}

impl Package {
    /// Reads and packs everything. Blocks.
    pub fn build(sources: &PackageSources) -> Result<Self, PackageFault> {
        let mut warnings = Vec::new();
        let files = list(sources, &mut warnings)?;
        let mut archive = Archive::new();
        for file in &files {
            archive.add(file, &mut warnings);
        }
        let (archive, packed) = archive.finish();
        let unpacked: u64 = packed.iter().map(|(_, size)| size).sum();
        if unpacked > WORTH_A_WARNING {
            warnings.push(size_warning(&packed, unpacked, sources));
        }
        Ok(Self {
            hash: blake3::hash(&archive).to_hex().to_string(),
            sha256: hex(&Sha256::digest(&archive)),
            files: packed.into_iter().map(|(name, _)| name).collect(),
            archive,
            warnings,
        })
    }

    /// The archive as it is stored and sent.
    pub fn compressed(&self) -> Vec<u8> {
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(LEVEL));
        gzip.write_all(&self.archive).expect("writing to memory");
        gzip.finish().expect("writing to memory")
    }

    /// Where the package is in the artifact store.
    pub fn key(&self) -> String {
        format!("code/{}/{}", &self.hash[..2], self.hash)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn size_warning(packed: &[(PathBuf, u64)], total: u64, sources: &PackageSources) -> String {
    let (largest, size) = packed.iter().max_by_key(|(_, size)| *size).expect("a large package has files");
    format!(
        "the code package holds {} MB, which every task downloads; its largest file is `{}` ({} MB). Keep data out of `{}`, or narrow --package-suffixes",
        total >> 20,
        largest.display(),
        size >> 20,
        sources.folder().display()
    )
}

/// Everything that goes into the package, in order of names.
pub fn list(sources: &PackageSources, warnings: &mut Vec<String>) -> Result<Vec<PackageFile>, PackageFault> {
    let mut files = Vec::new();
    user_files(sources, &mut files, warnings)?;
    module_files(sources, &mut files)?;
    let info = serde_json::to_vec(&sources.info).expect("INFO is plain data");
    files.push(PackageFile { name: PathBuf::from(INFO), source: Source::Bytes(info) });
    files.sort_by(|a, b| a.name.as_os_str().as_bytes().cmp(b.name.as_os_str().as_bytes()));
    files.dedup_by(|a, b| a.name == b.name);
    Ok(files)
}

fn user_files(
    sources: &PackageSources,
    files: &mut Vec<PackageFile>,
    warnings: &mut Vec<String>,
) -> Result<(), PackageFault> {
    let folder = sources.folder();
    if sources.script.file_name().is_none() {
        return Err(PackageFault::Script(sources.script.clone()));
    }
    let flow = match &sources.saved_flow {
        Some(saved) => (Path::new(MODULE_FOLDER).join(SAVED_FLOW), saved),
        None => (sources.flow_file().to_owned(), &sources.script),
    };
    files.push(PackageFile { name: flow.0, source: Source::File(flow.1.clone()) });
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(is_wanted_folder) {
        match entry {
            Ok(entry) if entry.file_type().is_file() && has_suffix(&entry, &sources.suffixes) => {
                let name = entry.path().strip_prefix(folder).expect("it is below the folder").to_owned();
                files.push(PackageFile { name, source: Source::File(entry.into_path()) });
            }
            Ok(_) => {}
            Err(error) => warnings.extend(walk_warning(&error)),
        }
        if files.len() > MOST_FILES {
            return Err(PackageFault::TooMany { folder: folder.to_owned() });
        }
    }
    Ok(())
}

/// A link that leads back up is passed over silently; so is one that leads nowhere.
fn walk_warning(error: &walkdir::Error) -> Option<String> {
    let gone = error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
    if error.loop_ancestor().is_some() || gone {
        return None;
    }
    Some(format!("the code package goes without a folder that cannot be read: {error}"))
}

/// Hidden folders, bytecode and virtual environments (of which a container has its own) stay.
fn is_wanted_folder(entry: &DirEntry) -> bool {
    if entry.depth() == 0 || !entry.file_type().is_dir() {
        return true;
    }
    let name = entry.file_name().as_bytes();
    !name.starts_with(b".") && name != b"__pycache__" && !entry.path().join("pyvenv.cfg").exists()
}

fn has_suffix(entry: &DirEntry, more: &[String]) -> bool {
    let name = entry.file_name().as_bytes();
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix.as_bytes()))
        || more.iter().any(|suffix| name.ends_with(suffix.as_bytes()))
}

fn module_files(sources: &PackageSources, files: &mut Vec<PackageFile>) -> Result<(), PackageFault> {
    let folder = &sources.module_folder;
    let fault = |error: io::Error| PackageFault::Module { folder: folder.clone(), error };
    // A module that cannot be listed shows up in its first entry.
    for entry in WalkDir::new(folder).into_iter().filter_entry(|entry| entry.file_name() != "__pycache__") {
        let entry = entry.map_err(|error| fault(error.into()))?;
        let path = entry.path();
        let below = path.strip_prefix(folder).expect("it is below the folder");
        if entry.file_type().is_file() && sources.language.takes_along(below) {
            let name = Path::new(MODULE_FOLDER).join("metaflow").join(below);
            files.push(PackageFile { name, source: Source::File(path.to_owned()) });
        }
    }
    Ok(())
}

struct Archive {
    tar: tar::Builder<Vec<u8>>,
    packed: Vec<(PathBuf, u64)>,
}

impl Archive {
    fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), packed: Vec::new() }
    }

    fn add(&mut self, file: &PackageFile, warnings: &mut Vec<String>) {
        let read = match &file.source {
            Source::Bytes(bytes) => Ok((bytes.clone(), false)),
            Source::File(path) => read_file(path),
        };
        match read {
            Ok((data, executable)) => {
                let mut header = tar::Header::new_gnu();
                // Not the old form, which says nothing: R's own `untar` does not know it.
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(data.len() as u64);
                header.set_mtime(MODIFIED);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                header.set_uid(0);
                header.set_gid(0);
                self.tar.append_data(&mut header, &file.name, data.as_slice()).expect("writing to memory");
                self.packed.push((file.name.clone(), data.len() as u64));
            }
            Err(error) => warnings.push(format!(
                "the code package goes without `{}`, which cannot be read: {error}",
                file.name.display()
            )),
        }
    }

    fn finish(self) -> (Vec<u8>, Vec<(PathBuf, u64)>) {
        (self.tar.into_inner().expect("writing to memory"), self.packed)
    }
}

fn read_file(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let executable = fs::metadata(path)?.permissions().mode() & 0o111 != 0;
    Ok((fs::read(path)?, executable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Project {
        folder: tempfile::TempDir,
    }

    impl Project {
        fn new() -> Self {
            let project = Self { folder: tempfile::tempdir().expect("folder") };
            project.write("flows/flow.py", "flow");
            project.write("module/__init__.py", "module");
            project.write("module/_native.abi3.so", "native");
            project.write("module/_native.pyi", "stub");
            project.write("module/__pycache__/x.py", "bytecode");
            project
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("file");
        }

        fn sources(&self) -> PackageSources {
            PackageSources {
                module: None,
                script: self.path("flows/flow.py"),
                suffixes: vec![".csv".to_owned()],
                language: Language::Python,
                saved_flow: None,
                module_folder: self.path("module"),
                info: Map::new(),
            }
        }

        fn names(&self) -> Vec<String> {
            let package = Package::build(&self.sources()).expect("package");
            package.files.iter().map(|name| name.display().to_string()).collect()
        }
    }

    const ALWAYS: [&str; 3] = [".mf_code/metaflow/__init__.py", ".mf_code/metaflow/_native.abi3.so", ".mf_meta/INFO"];

    fn with(names: &[&str]) -> Vec<String> {
        ALWAYS.iter().chain(names).map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn code_is_packaged_and_nothing_else() {
        let project = Project::new();
        for name in ["a/b/deep.py", "model.R", "fast.cpp", "table.csv", "data.parquet", ".git/hook.py"] {
            project.write(&format!("flows/{name}"), "x");
        }
        project.write("flows/a/__pycache__/c.py", "x");
        project.write("flows/env/pyvenv.cfg", "");
        project.write("flows/env/lib/huge.py", "x");
        assert_eq!(project.names(), with(&["a/b/deep.py", "fast.cpp", "flow.py", "model.R", "table.csv"]));
    }

    #[test]
    fn a_flow_that_is_a_module_takes_its_package_along() {
        let project = Project::new();
        for name in ["pkg/__init__.py", "pkg/sub/flow.py", "pkg/sub/__init__.py", "pkg/util.py", "other/x.py"] {
            project.write(&format!("app/{name}"), "x");
        }
        let script = project.path("app/pkg/sub/flow.py");
        let sources = PackageSources { script, module: Some("pkg.sub.flow".to_owned()), ..project.sources() };
        assert_eq!(sources.flow_file(), Path::new("pkg/sub/flow.py"));
        let package = Package::build(&sources).expect("package");
        let names: Vec<String> = package.files.iter().map(|name| name.display().to_string()).collect();
        let theirs = ["other/x.py", "pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/flow.py", "pkg/util.py"];
        assert_eq!(names, with(&theirs));
    }

    #[test]
    fn a_session_of_r_takes_its_flow_along_and_the_package_that_runs_it() {
        let project = Project::new();
        for name in ["DESCRIPTION", "R/metaflow.rdb", "libs/metaflow.so", "bin/metaflow", "help/x.rds"] {
            project.write(&format!("library/{name}"), "x");
        }
        project.write("flows/helper.R", "x");
        project.write("tmp/flow17.rds", "x");
        let sources = PackageSources {
            script: project.path("flows/<flow.R>"),
            language: Language::R,
            module_folder: project.path("library"),
            saved_flow: Some(project.path("tmp/flow17.rds")),
            ..project.sources()
        };
        let package = Package::build(&sources).expect("package");
        let names: Vec<String> = package.files.iter().map(|name| name.display().to_string()).collect();
        let ours =
            ["DESCRIPTION", "R/metaflow.rdb", "libs/metaflow.so"].map(|name| format!(".mf_code/metaflow/{name}"));
        let mut expected = vec![".mf_code/flow.rds".to_owned()];
        expected.extend(ours);
        expected.extend([".mf_meta/INFO", "flow.py", "helper.R"].map(str::to_owned));
        assert_eq!((names, package.warnings), (expected, Vec::new()));
    }

    #[test]
    fn the_same_contents_make_the_same_bytes() {
        let (first, second) = (Project::new(), Project::new());
        for name in ["z.py", "a.py", "m/one.py"] {
            first.write(&format!("flows/{name}"), name);
        }
        for name in ["m/one.py", "a.py", "z.py"] {
            second.write(&format!("flows/{name}"), name);
        }
        let past = std::time::SystemTime::UNIX_EPOCH;
        let file = fs::File::options().write(true).open(second.path("flows/a.py")).expect("file");
        file.set_modified(past).expect("time");
        fs::set_permissions(second.path("flows/z.py"), fs::Permissions::from_mode(0o600)).expect("mode");
        let [one, two] = [&first, &second].map(|project| Package::build(&project.sources()).expect("package"));
        assert!(one.archive == two.archive);
        assert_eq!(one.key(), format!("code/{}/{}", &one.hash[..2], two.hash));
        second.write("flows/a.py", "other");
        assert_ne!(Package::build(&second.sources()).expect("package").hash, one.hash);
    }

    #[test]
    fn linked_folders_are_followed_and_circles_end() {
        let project = Project::new();
        project.write("elsewhere/shared.py", "x");
        project.write("flows/sub/own.py", "x");
        symlink(project.path("elsewhere"), project.path("flows/linked")).expect("link");
        symlink(project.path("flows"), project.path("flows/sub/up")).expect("link");
        symlink(project.path("nowhere"), project.path("flows/dead.py")).expect("link");
        assert_eq!(project.names(), with(&["flow.py", "linked/shared.py", "sub/own.py"]));
        let package = Package::build(&project.sources()).expect("package");
        assert_eq!(package.warnings, Vec::<String>::new());
    }

    #[test]
    fn an_installation_without_a_module_is_told() {
        let project = Project::new();
        let sources = PackageSources { module_folder: project.path("missing"), ..project.sources() };
        let error = Package::build(&sources).expect_err("no module").to_string();
        assert!(error.starts_with("the code package needs the folder `"), "{error}");
        assert!(error.contains("missing` of the installed `metaflow`"), "{error}");
    }

    #[test]
    fn a_large_package_is_told_with_its_largest_file() {
        let packed = [(PathBuf::from("small.py"), 1), (PathBuf::from("big.csv"), 200 << 20)];
        let sources = PackageSources { script: "/p/flow.py".into(), ..Project::new().sources() };
        assert_eq!(
            size_warning(&packed, 200 << 20, &sources),
            "the code package holds 200 MB, which every task downloads; its largest file is `big.csv` (200 MB). Keep \
             data out of `/p`, or narrow --package-suffixes"
        );
    }
}
