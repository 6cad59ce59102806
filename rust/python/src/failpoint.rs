//! Places where tests kill the process or make it fail. Only in builds with the feature `failpoints`: elsewhere a
//! failpoint is an empty function.

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use std::env;
use std::sync::OnceLock;

const VARIABLE: &str = "ROOST_FAILPOINT";
const SIGKILL: i32 = 9;
const EIO: i32 = 5;

/// What `ROOST_FAILPOINT` asks for: `name[:n][:error]`.
struct Armed {
    name: String,
    error: bool,
    /// Hits until it goes off; 0 once it has.
    left: Mutex<u64>,
}

impl Armed {
    fn parse(text: &str) -> Option<Armed> {
        let mut parts = text.split(':');
        let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let left = parts.next().map_or(Some(1), |n| n.parse().ok().filter(|&n| n > 0))?;
        let error = match parts.next() {
            None => false,
            Some("error") => true,
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Armed { name, error, left: Mutex::new(left) })
    }

    /// Whether this hit of `name` is the one.
    fn hit(&self, name: &str) -> bool {
        let mut left = self.left.lock();
        if self.name != name || *left == 0 {
            return false;
        }
        *left -= 1;
        *left == 0
    }
}

/// Read once, at the first failpoint that is passed: a test sets it for a process that it starts.
static ARMED: OnceLock<Result<Option<Armed>, String>> = OnceLock::new();

fn armed() -> &'static Result<Option<Armed>, String> {
    ARMED.get_or_init(|| match env::var(VARIABLE) {
        Err(_) => Ok(None),
        Ok(text) => Armed::parse(&text).map(Some).ok_or(text),
    })
}

#[pyfunction]
pub(crate) fn failpoint(py: Python<'_>, name: &str) -> PyResult<()> {
    if !cfg!(feature = "failpoints") {
        return Ok(());
    }
    let armed = match armed() {
        Ok(None) => return Ok(()),
        Ok(Some(armed)) => armed,
        Err(text) => return Err(PyValueError::new_err(format!("{VARIABLE}: {text:?} is not name[:n][:error]"))),
    };
    if !armed.hit(name) {
        return Ok(());
    }
    if armed.error {
        return Err(PyOSError::new_err((EIO, format!("failpoint {name}"))));
    }
    py.import("os")?.call_method1("kill", (std::process::id(), SIGKILL))?;
    unreachable!("SIGKILL to oneself does not return")
}
