//! An HTTP/2 server that knows each of its connections, holds streams for as long as a test wants, and allows so many of
//! them at once.

use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use client_sdk::{
    model::{Address, Instance, InstanceBuilder},
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
};
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response, Uri};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore, watch},
};

/// The one of the tests.
#[derive(Clone)]
pub(crate) struct H2Server(Arc<Inner>);

struct Inner {
    /// How many streams it allows at once on a connection, if it says so.
    limit: Option<u32>,
    /// In the order they were accepted.
    links: watch::Sender<Vec<Arc<Link>>>,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) now: Mutex<Now>,
    /// A permit ends one stream that is held.
    pub(crate) gate: Semaphore,
    /// Says GOAWAY, and finishes what it has.
    pub(crate) away: Notify,
    /// Breaks it.
    pub(crate) close: Notify,
}

/// What a connection looks like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    pub(crate) closed: bool,
    /// Streams that are held.
    pub(crate) held: usize,
    /// Requests that were read to their end.
    pub(crate) read: usize,
    /// Where they were sent to.
    pub(crate) uris: Vec<Uri>,
}

impl H2Server {
    pub(crate) fn new(limit: Option<u32>) -> Self {
        Self(Arc::new(Inner { limit, links: watch::channel(Vec::new()).0 }))
    }

    /// On a port.
    pub(crate) async fn listen(&self) -> Address {
        self.listen_over(|stream| async { Ok(stream) }).await
    }

    /// On a port, with each connection wrapped first; those of which that fails are dropped.
    pub(crate) async fn listen_over<S: Io, F>(
        &self,
        wrap: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Address
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").into();
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (wrapped, server) = (wrap(stream), server.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = wrapped.await {
                        server.serve(stream).await;
                    }
                });
            }
        });
        address
    }

    /// An instance `a` on a port.
    pub(crate) async fn instance(&self) -> InstanceBuilder {
        Instance::builder(self.listen().await).id("a")
    }

    /// A world without a network in which every address is this server's. `reachable` gets the number of the attempt,
    /// from 0: `Err` fails it, `Ok(false)` lets it hang.
    pub(crate) fn world(
        &self,
        reachable: impl Fn(usize) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Runtime {
        struct Inside<F>(H2Server, F, std::sync::atomic::AtomicUsize);

        impl<F: Fn(usize) -> io::Result<bool> + Send + Sync + 'static> Connect for Inside<F> {
            fn connect<'a>(&'a self, _: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
                Box::pin(async move {
                    let attempt = self.2.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if !(self.1)(attempt)? {
                        std::future::pending::<()>().await;
                    }
                    let (near, far) = tokio::io::duplex(1 << 16);
                    let server = self.0.clone();
                    tokio::spawn(async move { server.serve(far).await });
                    Ok(Box::new(near) as Box<dyn Io>)
                })
            }
        }

        Runtime::new(TokioClock::default(), Inside(self.clone(), reachable, 0.into()), TokioSpawn, 7)
    }

    /// Every connection that there ever was.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.0.links.borrow().clone()
    }

    pub(crate) fn now(&self) -> Vec<Now> {
        self.links().iter().map(|link| link.now()).collect()
    }

    /// How many streams are held on each connection.
    pub(crate) fn held(&self) -> Vec<usize> {
        self.now().iter().map(|now| now.held).collect()
    }

    /// Requests that were read to their end.
    pub(crate) fn read(&self) -> usize {
        self.now().iter().map(|now| now.read).sum()
    }

    /// Waits until its connections look so.
    pub(crate) async fn until(&self, looks: impl Fn(&[Now]) -> bool) {
        let mut links = self.0.links.subscribe();
        loop {
            links.mark_unchanged();
            if looks(&self.now()) {
                return;
            }
            links.changed().await.expect("it lives");
        }
    }

    async fn serve(&self, io: impl Io) {
        let link = Arc::new(Link {
            now: Mutex::default(),
            gate: Semaphore::new(0),
            away: Notify::new(),
            close: Notify::new(),
        });
        self.0.links.send_modify(|links| links.push(Arc::clone(&link)));
        tokio::select! {
            () = self.speak(io, &link) => {}
            () = link.close.notified() => {}
        }
        self.update(&link, |now| now.closed = true);
    }

    async fn speak(&self, io: impl Io, link: &Arc<Link>) {
        let mut builder = h2::server::Builder::new();
        if let Some(limit) = self.0.limit {
            builder.max_concurrent_streams(limit);
        }
        let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else { return };
                    let (server, link) = (self.clone(), Arc::clone(link));
                    // A call that was given up on ends here.
                    tokio::spawn(async move { server.answer(&link, request, respond).await });
                }
                () = link.away.notified() => connection.graceful_shutdown(),
            }
        }
    }

    /// Answers a `Check` at once, or refuses it if it asks for the service `refuse`; holds a `Watch`.
    async fn answer(
        &self,
        link: &Link,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let (head, mut body) = request.into_parts();
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            let _ = body.flow_control().release_capacity(data.len());
            all.extend(data);
        }
        self.update(link, |now| {
            now.read += 1;
            now.uris.push(head.uri.clone());
        });
        if all.ends_with(b"refuse") {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(());
        }
        let response = Response::builder().header("content-type", "application/grpc");
        let mut send = respond.send_response(response.body(()).expect("valid"), false)?;
        // `SERVING`.
        send.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false)?;
        if head.uri.path().ends_with("Watch") {
            self.update(link, |now| now.held += 1);
            link.gate.acquire().await.expect("never closed").forget();
            self.update(link, |now| now.held -= 1);
        }
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("ascii"))]);
        send.send_trailers(trailers)
    }

    fn update(&self, link: &Link, change: impl FnOnce(&mut Now)) {
        self.0.links.send_modify(|_| change(&mut link.now.lock().expect("no panic")));
    }
}

impl Link {
    pub(crate) fn now(&self) -> Now {
        self.now.lock().expect("no panic").clone()
    }
}
