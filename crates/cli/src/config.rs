//! Configuration, parsed once into one typed value with all mistakes reported together
//! (design D10). Below this crate nothing of ours reads the environment.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Name of the folder that holds local data, and of the project's configuration folder.
const LOCAL_FOLDER: &str = ".metaflow";

/// Where `METAFLOW_X` values come from: the environment, then the nearest `.metaflow/config.json`,
/// then the user's configuration file (behaviour.md G-9).
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    variables: BTreeMap<String, String>,
    file: BTreeMap<String, Value>,
}

/// What the rest of the command line needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub lookup: Lookup,
    pub user: String,
    /// `user:name` or `production:token`.
    pub identity: String,
    /// Text of the `runtime:` tag.
    pub runtime_name: String,
    /// Decorators for every step, from `METAFLOW_DEFAULT_DECOSPECS`.
    pub default_decorators: Vec<String>,
    pub default_metadata: String,
    pub default_datastore: String,
    pub default_environment: String,
    /// Start every task as a new interpreter.
    pub spawn: bool,
    pub learn_imports: bool,
}

impl Lookup {
    /// Reads the environment and the configuration files as seen from `cwd`.
    pub fn read(cwd: &Path) -> Result<Self, Vec<String>> {
        let variables: BTreeMap<String, String> =
            env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let mut lookup = Self { variables, file: BTreeMap::new() };
        let mut mistakes = Vec::new();
        for path in lookup.files(cwd, &mut mistakes) {
            match read_json_object(&path) {
                Ok(values) => {
                    for (name, value) in values {
                        lookup.file.entry(name).or_insert(value);
                    }
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(lookup) } else { Err(mistakes) }
    }

    /// The nearest project file, then the user's.
    fn files(&self, cwd: &Path, mistakes: &mut Vec<String>) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if let Some(path) =
            cwd.ancestors().map(|folder| folder.join(LOCAL_FOLDER).join("config.json")).find(|path| path.is_file())
        {
            files.push(path);
        }
        let Some(home) = self.home_folder() else { return files };
        match self.environment("METAFLOW_PROFILE") {
            Some(profile) => {
                let path = home.join(format!("config_{profile}.json"));
                if path.is_file() {
                    files.push(path);
                } else {
                    mistakes
                        .push(format!("`METAFLOW_PROFILE` is `{profile}`, but there is no file `{}`", path.display()));
                }
            }
            None => files.extend(Some(home.join("config.json")).filter(|path| path.is_file())),
        }
        files
    }

    fn home_folder(&self) -> Option<PathBuf> {
        match self.environment("METAFLOW_HOME") {
            Some(home) => Some(expand_home(home, self.environment("HOME"))),
            None => self.environment("HOME").map(|home| Path::new(home).join(".metaflowconfig")),
        }
    }

    /// An environment variable; an empty one counts as not set.
    pub fn environment(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A configuration value: environment first, then the files.
    pub fn value(&self, name: &str) -> Option<String> {
        if let Some(value) = self.environment(name) {
            return Some(value.to_owned());
        }
        match self.file.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            other => Some(other.to_string()),
        }
    }

    /// A boolean: anything but `0`, `false` and nothing is true.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        match self.value(name) {
            Some(value) => !matches!(value.trim().to_ascii_lowercase().as_str(), "0" | "false" | ""),
            None => default,
        }
    }
}

fn read_json_object(path: &Path) -> Result<BTreeMap<String, Value>, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read the configuration file `{}`: {error}", path.display()))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("the configuration file `{}` is not a JSON object: {error}", path.display()))
}

fn expand_home(path: &str, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => PathBuf::from(path),
    }
}

impl Config {
    pub fn read(cwd: &Path) -> Result<Self, Vec<String>> {
        let lookup = Lookup::read(cwd)?;
        let user = user_name(&lookup)
            .ok_or_else(|| vec!["the user's name is not known: set `METAFLOW_USER` or `USER` to a name".to_owned()])?;
        let identity = match lookup.value("METAFLOW_PRODUCTION_TOKEN") {
            Some(token) => format!("production:{token}"),
            None => format!("user:{user}"),
        };
        let text = |name: &str, default: &str| lookup.value(name).unwrap_or_else(|| default.to_owned());
        Ok(Self {
            user,
            identity,
            runtime_name: text("METAFLOW_RUNTIME_NAME", "dev"),
            default_decorators: text("METAFLOW_DEFAULT_DECOSPECS", "").split_whitespace().map(str::to_owned).collect(),
            default_metadata: text("METAFLOW_DEFAULT_METADATA", "local"),
            default_datastore: text("METAFLOW_DEFAULT_DATASTORE", "local"),
            default_environment: text("METAFLOW_DEFAULT_ENVIRONMENT", "local"),
            spawn: lookup.value("FERROFLOW_START_METHOD").as_deref() == Some("spawn"),
            learn_imports: lookup.flag("FERROFLOW_LEARNED_IMPORTS", true),
            lookup,
        })
    }

    /// The local datastore root: as configured, else the nearest `.metaflow` upward, else a new
    /// one in `cwd`. The flag says that it does not exist yet.
    pub fn local_root(&self, cwd: &Path, option: Option<&str>) -> (PathBuf, bool) {
        let root = match option {
            Some(root) => cwd.join(root),
            None => match self.lookup.value("METAFLOW_DATASTORE_SYSROOT_LOCAL") {
                Some(folder) => cwd.join(expand_home(&folder, self.lookup.environment("HOME"))).join(LOCAL_FOLDER),
                None => cwd
                    .ancestors()
                    .map(|folder| folder.join(LOCAL_FOLDER))
                    .find(|path| path.is_dir())
                    .unwrap_or_else(|| cwd.join(LOCAL_FOLDER)),
            },
        };
        let is_new = !root.is_dir();
        (root, is_new)
    }
}

/// The configured user, else the account this process runs as (root included: difference 1).
fn user_name(lookup: &Lookup) -> Option<String> {
    lookup
        .value("METAFLOW_USER")
        .or_else(|| {
            ["SUDO_USER", "USERNAME", "USER"].iter().find_map(|name| lookup.environment(name).map(str::to_owned))
        })
        .or_else(account_name)
}

fn account_name() -> Option<String> {
    let uid = rustix::process::getuid().as_raw();
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse::<u32>().ok()? == uid).then(|| fields[0].to_owned())
    })
}
