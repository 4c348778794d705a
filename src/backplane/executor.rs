//! The one file that names glommio.
//!
//! The backplane needs little of it: tasks in two queues with shares, timers, TCP for the admin listener, DMA reads of
//! segments, zero-filling of new ones, and a way to run a blocking call elsewhere. Whatever replaces glommio one day
//! replaces this file. The machine is probed before (`shards::ring::probe`), because glommio ends the process when an
//! io_uring operation is missing.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use glommio::io::{DmaFile, OpenOptions};
use glommio::net::{TcpListener, TcpStream};
use glommio::{Latency, LocalExecutorBuilder, Placement, PoolPlacement, Shares, TaskQueueHandle};

/// glommio registers this much memory with its rings; more would count against RLIMIT_MEMLOCK.
const IO_MEMORY_BYTES: usize = 512 << 10;
const FILL_CHUNK_BYTES: usize = 256 << 10;

/// Which share of the backplane's core a task runs on.
#[derive(Clone, Copy)]
pub enum Queue {
    /// The admin listener: short answers, soon.
    Admin,
    /// Filling, recycling and reading segments: what is left.
    Disk,
}

#[derive(Clone, Copy)]
pub struct Backplane {
    admin: TaskQueueHandle,
    disk: TaskQueueHandle,
}

/// Runs `main` on this thread until it is done. `core` pins the thread.
pub fn run<F, T>(core: Option<usize>, main: impl FnOnce(Backplane) -> F) -> io::Result<T>
where
    F: Future<Output = T>,
{
    let executor = LocalExecutorBuilder::new(core.map_or(Placement::Unbound, Placement::Fixed))
        .name("metricstream-backplane")
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(128)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|error| io::Error::other(format!("the backplane's executor cannot start: {error}")))?;
    Ok(executor.run(async move {
        let tasks = glommio::executor();
        let admin = tasks.create_task_queue(
            Shares::Static(800),
            Latency::Matters(Duration::from_millis(10)),
            "metricstream-admin",
        );
        let disk = tasks.create_task_queue(Shares::Static(200), Latency::NotImportant, "metricstream-disk");
        main(Backplane { admin, disk }).await
    }))
}

impl Backplane {
    /// Starts a task that runs beside this one until it ends.
    pub fn spawn(&self, queue: Queue, task: impl Future<Output = ()> + 'static) {
        let handle = match queue {
            Queue::Admin => self.admin,
            Queue::Disk => self.disk,
        };
        glommio::spawn_local_into(task, handle).expect("the queues live as long as the executor").detach();
    }
}

pub async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// Until `event` is there, or `duration` is over. Another thread may wake it.
pub async fn wait_for(event: impl Future<Output = ()>, duration: Duration) {
    futures_lite::future::or(event, sleep(duration)).await;
}

/// Lets other tasks run in the middle of long work.
pub async fn yield_now() {
    glommio::yield_if_needed().await;
}

/// Runs a blocking call on another thread.
pub async fn unblock<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor().spawn_blocking(call).await
}

pub struct Listener(TcpListener);

impl Listener {
    /// Takes over a socket that listens. (glommio's own `bind` sets SO_REUSEPORT and not SO_REUSEADDR: a second process
    /// could join the port, and old connections would keep a restarted one off it.)
    #[allow(unsafe_code)]
    pub fn from_socket(socket: OwnedFd) -> Listener {
        // SAFETY: an open socket, owned here and given away.
        Listener(unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) })
    }
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().map_err(into_io)
    }
    pub async fn accept(&self) -> io::Result<Stream> {
        self.0.accept().await.map(Stream).map_err(into_io)
    }
}

pub struct Stream(TcpStream);

impl Stream {
    pub fn set_timeouts(&self, timeout: Duration) {
        let _ = self.0.set_read_timeout(Some(timeout));
        let _ = self.0.set_write_timeout(Some(timeout));
        let _ = self.0.set_nodelay(true);
    }
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        futures_lite::AsyncReadExt::read(&mut self.0, buffer).await
    }
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        futures_lite::AsyncWriteExt::write_all(&mut self.0, bytes).await
    }
    pub async fn close(&mut self) {
        let _ = futures_lite::AsyncWriteExt::close(&mut self.0).await;
    }
}

/// Lets glommio find out, on a file that has contents, whether the disk under `dir` can be polled for completions.
///
/// It asks with a read of the first file that it opens on each disk and remembers the answer. On an empty file that read
/// succeeds without reaching the disk, the answer is "yes" where it should be "no", and every later read fails with
/// EOPNOTSUPP (seen with glommio 0.9 on virtio).
pub async fn learn_disk(dir: &Path) -> io::Result<()> {
    let path = dir.join("io-probe");
    std::fs::write(&path, vec![0u8; 64 << 10])?;
    std::fs::File::open(&path)?.sync_all()?;
    let opened = Reader::open(&path).await;
    if let Ok(reader) = opened {
        reader.close().await;
    }
    std::fs::remove_file(&path)
}

/// A file read by direct I/O, past the page cache.
pub struct Reader(Rc<DmaFile>);

impl Reader {
    pub async fn open(path: &Path) -> io::Result<Reader> {
        let mut options = OpenOptions::new();
        options.read(true);
        options.dma_open(path).await.map(|file| Reader(Rc::new(file))).map_err(into_io)
    }
    pub async fn size_bytes(&self) -> io::Result<u64> {
        self.0.file_size().await.map_err(into_io)
    }
    /// Up to `len` bytes from `offset` on, both multiples of 4 KiB; fewer at the end of the file.
    pub async fn read_at(&self, offset_bytes: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
        let read = self.0.read_at_aligned(offset_bytes, len_bytes).await.map_err(into_io)?;
        Ok(read.to_vec())
    }
    pub async fn close(self) {
        if let Ok(file) = Rc::try_unwrap(self.0) {
            let _ = file.close().await;
        }
    }
}

/// Makes a new file of `bytes` zeros, durable down to the file itself (the directory is the caller's).
/// `stop` is looked at between chunks: a fill that shutdown interrupts leaves a short file for the caller to remove.
pub async fn zero_fill(path: &Path, bytes: u64, stop: &Cell<bool>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).read(true).write(true);
    let file = options.dma_open(path).await.map_err(into_io)?;
    let mut at = 0;
    let result = loop {
        if at >= bytes {
            break file.fdatasync().await.map_err(into_io);
        }
        if stop.get() {
            break Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        let len = FILL_CHUNK_BYTES.min((bytes - at) as usize);
        let mut buffer = file.alloc_dma_buffer(len);
        buffer.as_bytes_mut().fill(0);
        match file.write_at(buffer, at).await {
            Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(written) => at += written as u64,
            Err(error) => break Err(into_io(error)),
        }
        glommio::yield_if_needed().await;
    };
    let closed = file.close().await.map_err(into_io);
    result.and(closed)
}

fn into_io<T: std::fmt::Debug>(error: glommio::GlommioError<T>) -> io::Error {
    match error {
        glommio::GlommioError::IoError(error) => error,
        glommio::GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}
