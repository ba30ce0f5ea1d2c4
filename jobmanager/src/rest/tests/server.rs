//! The driver that answers from fixed views, and the API in front of it, asked over HTTP.

use super::*;

pub(super) fn submit(wasm: &Bytes) -> Result<SubmittedView, SubmitError> {
    match wasm.as_ref() {
        b"not a module" => Err(SubmitError::Module {
            reason: "it does not begin with \\0asm".into(),
        }),
        b"same output" => Err(SubmitError::OutputInUse {
            output: "/out".into(),
            other: ENDED_JOB,
            other_name: "other".into(),
        }),
        _ => Ok(SubmittedView {
            id: KNOWN.into(),
            name: "wordcount".into(),
            slots_needed: 4,
            slots_free: 2,
            warnings: vec!["operator `map-1` keeps state in a closure".into()],
        }),
    }
}

/// What the driver was asked for, for tests that look at it.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;
pub(super) type Submitted = Arc<Mutex<Vec<SubmitOptions>>>;

pub(super) async fn answer(
    mut requests: mpsc::Receiver<Request>,
    submitted: Submitted,
    asked: Asked,
) {
    let known = |job: JobId| {
        if job == KNOWN_JOB {
            Ok(())
        } else {
            Err(QueryError::UnknownJob(job))
        }
    };
    let note = |text: String| asked.lock().expect("no test panics here").push(text);
    while let Some(request) = requests.recv().await {
        // Whoever asked may be gone, which is no concern of the driver's.
        match request {
            Request::Submit {
                wasm,
                options,
                reply,
            } => {
                submitted.lock().expect("no test panics here").push(options);
                let _ = reply.send(submit(&wasm));
            }
            Request::Jobs(reply) => drop(reply.send(vec![summary()])),
            Request::Job(job, reply) => drop(reply.send(known(job).map(|()| detail()))),
            Request::Cancel(job, reply) => {
                note(format!("cancel {job}"));
                let _ = reply.send(match job {
                    KNOWN_JOB => Ok(()),
                    ENDED_JOB => Err(CancelError::Ended {
                        job,
                        state: "finished".into(),
                    }),
                    _ => Err(CancelError::UnknownJob(job)),
                });
            }
            Request::Checkpoints(job, reply) => {
                let view = CheckpointsView {
                    completed: 17,
                    failed: 1,
                    totals: checkpoint_totals(),
                    retained: vec!["3.17".into()],
                    retained_at: vec![RetainedView {
                        id: "3.17".into(),
                        path: format!("checkpoints/{KNOWN}/3-17"),
                    }],
                    history: vec![checkpoint()],
                };
                let _ = reply.send(known(job).map(|()| view));
            }
            Request::Checkpoint(job, id, reply) => {
                let is_known = id == CheckpointId::new(Epoch(3), 17);
                let view = CheckpointDetail {
                    checkpoint: checkpoint(),
                    path: Some(format!("checkpoints/{KNOWN}/3-17")),
                    captures: Some(vec![capture()]),
                    tasks_missing: vec!["1/1".into()],
                };
                let unknown = QueryError::UnknownCheckpoint {
                    job,
                    checkpoint: id,
                };
                let _ = reply.send(known(job).and(is_known.then_some(view).ok_or(unknown)));
            }
            Request::TriggerSavepoint {
                job,
                id,
                directory,
                stop,
                reply,
            } => {
                note(format!("savepoint {job} {id} {directory:?} {stop}"));
                let _ = reply.send(match job {
                    KNOWN_JOB => Ok(savepoint_status(stop)),
                    ENDED_JOB => Err(SavepointError::Refused {
                        job,
                        reason: "it has ended".into(),
                    }),
                    _ => Err(SavepointError::UnknownJob(job)),
                });
            }
            Request::SavepointStatus(job, id, reply) => {
                let known = id == request_id();
                let completed = SavepointStatus::Completed {
                    path: "savepoints/before".into(),
                    bytes: 1 << 20,
                    checkpoint: CheckpointId::new(Epoch(3), 17),
                };
                let unknown = SavepointError::UnknownRequest { job, id };
                let _ = reply.send(known.then_some(completed).ok_or(unknown));
            }
            Request::Savepoints(reply) => {
                let _ = reply.send(Ok(SavepointListing {
                    savepoints: [false, true].map(savepoint_info).into(),
                    unusable: vec![UnusableSavepoint {
                        path: "savepoints/begun".into(),
                        bytes: 10,
                        is_incomplete: true,
                        missing: vec!["savepoint".into(), "graph".into()],
                        reason: "it is incomplete".into(),
                    }],
                }));
            }
            Request::Savepoint(path, reply) => drop(reply.send(stored(&path))),
            Request::VerifySavepoint(path, reply) => {
                note(format!("verify {path}"));
                let _ = reply.send(stored(&path));
            }
            Request::DeleteSavepoint(path, reply) => {
                note(format!("delete {path}"));
                let _ = reply.send(stored(&path).map(|_| ()));
            }
            Request::Nodes(reply) => drop(reply.send(vec![node()])),
            Request::JobManagers(reply) => drop(reply.send(leading().job_managers())),
            Request::Logs { job, query, reply } => {
                let LogQuery { task, after, limit } = query;
                note(format!("logs {task:?} {after:?} {limit}"));
                let task_is_known = task.is_none_or(|task| task == TaskId::new(1, 0));
                let page = known(job).and_then(|()| match (task, task_is_known) {
                    (Some(task), false) => Err(QueryError::UnknownTask { job, task }),
                    _ => Ok(log_page()),
                });
                let _ = reply.send(page);
            }
            Request::Metrics(reply) => drop(reply.send(metrics_view())),
            Request::Health(reply) => drop(reply.send(health())),
        }
    }
}

/// A served API; its client is blocking, so tests run in ordinary functions.
pub(super) struct Server {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) base: String,
    pub(super) agent: ureq::Agent,
    pub(super) submitted: Submitted,
    pub(super) asked: Asked,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) served: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: ureq::http::HeaderMap,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(super) fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        let error = &json["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (
            self.status,
            text("code"),
            format!("{} {}", text("message"), text("help")),
        )
    }
}

impl Server {
    pub(super) fn start(overrides: &[&str]) -> Self {
        let mut settings = vec!["jobmanager.rest_address=127.0.0.1:0".to_owned()];
        settings.extend(overrides.iter().map(|text| (*text).to_owned()));
        let config = Arc::new(Config::load(None, [], &settings).expect("good settings"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(bind(&config)).expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("a bound address"));
        let (requests, received) = mpsc::channel(4);
        let (submitted, asked) = (Submitted::default(), Asked::default());
        runtime.spawn(answer(received, submitted.clone(), asked.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (standing, seen) = watch::channel(leading());
        let served = runtime.spawn(serve(
            listener,
            ClusterHandle::new(requests, seen),
            config,
            async {
                let _ = stopped.await;
            },
        ));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        Self {
            runtime,
            base,
            agent,
            submitted,
            asked,
            standing,
            stop: Some(stop),
            served: Some(served),
        }
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(super) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.call().expect("an answer"))
    }

    pub(super) fn post(&self, path: &str, content_type: Option<&str>, body: &[u8]) -> Answer {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(content_type) = content_type {
            request = request.content_type(content_type);
        }
        read(request.send(body).expect("an answer"))
    }

    pub(super) fn upload(&self, query: &str, body: &[u8]) -> Answer {
        self.post(&format!("/v1/jobs{query}"), Some("application/wasm"), body)
    }
}

pub(super) fn read(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.body_mut().read_to_string().expect("a body"),
    }
}
