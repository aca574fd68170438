// Streams an answer over gRPC: go run . [host:port]. docs/clients.md says how to generate pdserve/v1.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "pdserve/v1"
)

func main() {
	address := append(os.Args[1:], "127.0.0.1:9000")[0]
	connection, err := grpc.Dial(address, grpc.WithInsecure()) // loopback; there is no TLS
	if err != nil {
		log.Fatal(err)
	}
	stream, err := pb.NewInferenceServiceClient(connection).Generate(context.Background(), &pb.GenerateRequest{
		Prompt:   &pb.GenerateRequest_Text{Text: "Once upon a time"},
		Sampling: &pb.SamplingOptions{MaxTokens: proto.Int64(40)},
	})
	for err == nil {
		var piece *pb.GenerateResponse
		if piece, err = stream.Recv(); err == nil {
			fmt.Print(piece.TextDelta)
		}
	}
	fmt.Println("\n" + err.Error()) // EOF: the answer is complete
}
