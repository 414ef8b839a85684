// Command cri makes one call of the Container Runtime Interface, which kubelets talk to container runtimes by.
//
//	cri SOCKET METHOD < request.json > response.json
//
// METHOD is one of runtime.v1.RuntimeService, such as RunPodSandbox. Requests and responses are the JSON form of
// their protocol buffers.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	service = "runtime.v1.RuntimeService"
	// As long as kubelet waits by default.
	patience = 2 * time.Minute
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cri SOCKET METHOD < request.json > response.json")
		os.Exit(2)
	}
	response, err := call(os.Args[1], os.Args[2], os.Stdin)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[2], err)
		os.Exit(1)
	}
	fmt.Println(string(response))
}

func call(socket, method string, input io.Reader) ([]byte, error) {
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
	if err != nil {
		return nil, err
	}
	found := descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if found == nil {
		return nil, fmt.Errorf("no method of %s", service)
	}
	request, err := message(found.Input())
	if err != nil {
		return nil, err
	}
	response, err := message(found.Output())
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(input)
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if err := protojson.Unmarshal(text, request); err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	within, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	name := fmt.Sprintf("/%s/%s", service, method)
	if err := connection.Invoke(within, name, request, response); err != nil {
		return nil, err
	}
	return protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(response)
}

func message(descriptor protoreflect.MessageDescriptor) (protoreflect.ProtoMessage, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}
