#!/usr/bin/env python3
"""An S3 server for tests: moto on a free port of this host, made worse on demand. Prints its URL when it listens.

s3.py get URL BUCKET FOLDER
  copies all objects of a bucket to a folder
s3.py rows URL FOLDER
  counts the rows that pyarrow reads of the Parquet files of a folder of the store, without a copy
s3.py serve [FAULT]
  ignores    drops If-None-Match, as some stores do: two creations of one object both succeed
  refuses    answers 501 to If-None-Match
  flaky      every third request is answered 503 and every seventh loses its answer after it took effect
  multipart  of each object's first upload in parts the completion takes effect and its answer is lost, or, of names with
             "gone", the server has forgotten the upload
  forbidden  answers 403 as to wrong keys (moto itself takes any)
`POST /_test/log` gives all requests so far, a line each. There is a bucket `labels`. One request is served at a time: moto's own check
of If-None-Match is not atomic, which would make it one more store that lets two win.
"""
import io
import pathlib
import sys
import threading

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ERROR = (
    "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
)


class Server:
    def __init__(self, fault):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.fault, self.count, self.log, self.lock = fault, 0, [], threading.Lock()
        self.completed = {}

    def __call__(self, environ, start):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self.lock:
            return self.serve(environ, body, start)

    def serve(self, environ, body, start):
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["PATH_INFO"] == "/_test/log":
            start("200 OK", [])
            return ["\n".join(self.log).encode()]
        self.count += 1
        self.log.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {len(body)}")
        refuse = lambda status, code: self.refuse(start, status, code)
        if self.fault == "forbidden":
            return refuse("403 Forbidden", "InvalidAccessKeyId")
        if self.fault == "refuses" and "HTTP_IF_NONE_MATCH" in environ:
            return refuse("501 Not Implemented", "NotImplemented")
        if self.fault == "ignores":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if self.fault == "flaky" and self.count % 3 == 0:
            return refuse("503 Slow Down", "SlowDown")
        if self.fault == "multipart" and "uploadId=" in environ["QUERY_STRING"] and environ["REQUEST_METHOD"] == "POST":
            path = environ["PATH_INFO"]
            if path not in self.completed:
                self.completed[path] = environ["QUERY_STRING"]
                if "gone" not in path:
                    list(self.moto(environ, lambda *_: None))
                    raise ConnectionAbortedError("the answer is lost")
            if self.completed[path] == environ["QUERY_STRING"]:
                return refuse("404 Not Found", "NoSuchUpload")
        answer = self.moto(environ, start)
        if self.fault == "flaky" and self.count % 7 == 0:
            raise ConnectionAbortedError("the answer is lost")
        return answer

    @staticmethod
    def refuse(start, status, code):
        start(status, [("Content-Type", "application/xml")])
        return [ERROR.format(code=code, message=status).encode()]


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass

    def connection_dropped(self, error, environ=None):
        self.close_connection = True


def client(url):
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )


def serve(fault=None):
    server = Server(None)
    listening = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    url = f"http://127.0.0.1:{listening.server_port}"
    threading.Thread(target=listening.serve_forever).start()
    client(url).create_bucket(Bucket="labels")
    server.fault, server.count, server.log = fault, 0, []
    print(url, flush=True)


def get(url, bucket, folder):
    s3 = client(url)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            path = pathlib.Path(folder, found["Key"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())


def rows(url, folder):
    from pyarrow import dataset, fs

    store = fs.S3FileSystem(
        endpoint_override=url.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        access_key="test",
        secret_key="test",
    )
    print(dataset.dataset(folder, filesystem=store, format="parquet").to_table().num_rows)


{"serve": serve, "get": get, "rows": rows}[sys.argv[1]](*sys.argv[2:])
